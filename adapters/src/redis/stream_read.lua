-- Where a stream stands, and its next records, no more than fit.
--
-- KEYS: the stream. ARGV: the id behind which records are asked for; the last id that may come; how many; bytes they may
--       take together, except that one alone always may.
-- Answers the first and the last id, how many records there ever were and how many there are, and the id that follows those that are
-- asked for ('' where none does); then an entry for each record. Nothing for a stream that is not there.
local key, after, to = KEYS[1], '(' .. ARGV[1], ARGV[2]
local count, room = tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', key) == 0 then
  return {}
end
local info, facts = redis.call('XINFO', 'STREAM', key), {}
for at = 1, #info, 2 do
  facts[info[at]] = info[at + 1]
end
local first = facts['length'] == 0 and '0-0' or facts['recorded-first-entry-id']
local answer = {first, facts['last-generated-id'], facts['entries-added'], facts['length'], ''}
local entry
while count > 0 do
  entry = redis.call('XRANGE', key, after, to, 'COUNT', 1)[1]
  if not entry then
    break
  end
  for _, part in ipairs(entry[2]) do
    room = room - #part - 16
  end
  if room < 0 and #answer > 5 then
    break
  end
  answer[#answer + 1] = entry
  after, count = '(' .. entry[1], count - 1
end
local following = redis.call('XRANGE', key, after, '+', 'COUNT', 1)[1]
if following then
  answer[5] = following[1]
end
return answer
