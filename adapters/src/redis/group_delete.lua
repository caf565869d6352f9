-- Deletes a consumer group and what is kept of it.
--
-- KEYS: the stream, what is kept of the group. ARGV: the group.
-- Answers whether there was one.
redis.call('DEL', KEYS[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
