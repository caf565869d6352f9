-- Deletes a durable subscription.
--
-- KEYS: what is kept of it. ARGV: its name; what the names of its namespace's streams begin with.
-- Answers whether there was one.
local topic = redis.call('HGET', KEYS[1], 'topic')
if not topic then
  return 0
end
local stream = ARGV[2] .. topic
if redis.call('EXISTS', stream) == 1 then
  redis.call('XGROUP', 'DESTROY', stream, ARGV[1])
end
redis.call('UNLINK', KEYS[1])
return 1
