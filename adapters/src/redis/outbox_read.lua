-- Reads messages of transactions, as many as fit.
--
-- KEYS: the outbox. ARGV: bytes that they may take together, except that one alone always may; their ids.
-- Answers for each its id and its fields, which are none where it is not there any more.
local room, answer = tonumber(ARGV[1]), {}
for at = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[at], ARGV[at])[1]
  local fields = entry and entry[2] or {}
  for _, part in ipairs(fields) do
    room = room - #part - 16
  end
  if room < 0 and #answer > 0 then
    break
  end
  answer[#answer + 1] = {ARGV[at], fields}
end
return answer
