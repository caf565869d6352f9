-- Marks deliveries of a consumer group as done.
--
-- KEYS: the stream, what is kept of the group.
-- ARGV: the group, then for each delivery since when its group was as it is, and its record's id.
-- Answers per delivery 1; 0 where its record is none that the group waits for; or 'missing' where there is no such group.
local exists, since = false, redis.call('HGET', KEYS[2], 'since-us') or '0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, one in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    exists = exists or one[2] == ARGV[1]
  end
end
if not exists then
  return 'missing'
end
local answer = {}
for at = 2, #ARGV, 2 do
  local done = 0
  if ARGV[at] == since then
    done = redis.call('XACK', KEYS[1], ARGV[1], ARGV[at + 1])
  end
  answer[#answer + 1] = done
end
return answer
