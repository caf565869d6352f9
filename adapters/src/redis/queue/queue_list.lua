-- Looks at messages or dead letters, the oldest first, and changes nothing.
--
-- ARGV: the time; 'messages' or 'dead'; the number behind which it begins; how many at most; bytes of an answer, which the first may exceed.
-- Answers whether that is all; for each its number, since when it is a dead letter though nobody has noticed ('': it is none, or was), and
-- its fields.
local after, count, room = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local answer, found, most = {1}, 0, deliveries_max()
-- Whether there is room for another one.
local function put(number, dead_at)
  local fields = redis.call('HGETALL', message(number))
  if #fields == 0 then
    return true
  end
  room = room - bytes_of(fields)
  if found == count or room < 0 and found > 0 then
    answer[1] = 0
    return false
  end
  found = found + 1
  answer[#answer + 1] = number
  answer[#answer + 1] = dead_at
  answer[#answer + 1] = fields
  return true
end
-- When the last delivery of one has ended that is used up.
local given_up, numbers = {}, {}
if most > 0 then
  local ended = redis.call('ZRANGEBYSCORE', leased, '-inf', ARGV[1], 'WITHSCORES')
  for at = 1, #ended, 2 do
    if is_used_up(ended[at], most) then
      given_up[ended[at]] = string.format('%.0f', ended[at + 1])
      numbers[#numbers + 1] = ended[at]
    end
  end
end
if ARGV[2] == 'dead' then
  local kept = redis.call('ZRANGEBYSCORE', dead, '(' .. after, '+inf', 'LIMIT', 0, count + 1)
  for _, number in ipairs(kept) do
    numbers[#numbers + 1] = number
  end
  table.sort(numbers, function(one, other) return tonumber(one) < tonumber(other) end)
  for _, number in ipairs(numbers) do
    if tonumber(number) > tonumber(after) and not put(number, given_up[number] or '') then
      break
    end
  end
  return answer
end
while true do
  local some = redis.call('ZRANGEBYSCORE', messages, '(' .. after, '+inf', 'LIMIT', 0, 100)
  for _, number in ipairs(some) do
    local expiry = redis.call('HGET', message(number), 'expires-at-us')
    local is_there = not given_up[number] and not (expiry and tonumber(expiry) <= now)
    if is_there and not put(number, '') then
      return answer
    end
    after = number
  end
  if #some < 100 then
    return answer
  end
end
