-- Takes note of what was done with events of a durable subscription.
--
-- KEYS: the stream, what is kept of the subscription. ARGV: its topic; its name; for each event since when the subscription stands that it was
--       handed out by, and its id.
-- Answers for each whether it waited for that; 'missing' where there is no such subscription, 'mismatch' where it is one of another topic.
local there = redis.call('HMGET', KEYS[2], 'topic', 'since-us')
if not there[1] then
  return 'missing'
end
if there[1] ~= ARGV[1] then
  return 'mismatch'
end
local answer = {}
for at = 3, #ARGV, 2 do
  local done = 0
  if ARGV[at] == there[2] then
    done = redis.call('XACK', KEYS[1], ARGV[2], ARGV[at + 1])
  end
  answer[#answer + 1] = done
end
return answer
