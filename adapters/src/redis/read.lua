-- Values and expiries of many keys, no more of them than fit.
--
-- KEYS: the keys. ARGV: bytes that the values may take together; the same for the first one by itself, if that is more;
--       1 if the answer is to end before the first that does not fit.
-- Answers per key its value (1 where that does not fit, an error where it has none) and when it expires (-2: it is not there).
local room, first, ends = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local answer = {}
for number, key in ipairs(KEYS) do
  local allowed = room
  if number == 1 and first > allowed then
    allowed = first
  end
  local value = 1
  if allowed >= 0 then
    value = redis.pcall('GETRANGE', key, 0, allowed)
    if type(value) == 'string' and #value > allowed then
      value = 1
    end
  end
  if value == 1 and ends and number > 1 then
    return answer
  end
  if type(value) == 'string' then
    room = room - #value - 96
  end
  answer[2 * number - 1], answer[2 * number] = value, redis.call('PEXPIRETIME', key)
end
return answer
