-- Puts dead letters back as if they were just sent, the oldest first.
--
-- ARGV: the time; how many at most; the ids of those that are meant, all where there are none.
-- Answers how many.
tell()
pass()
local left, redriven, meant = tonumber(ARGV[2]), 0, {}
for at = 3, #ARGV do
  meant[ARGV[at]] = true
end
local last = #ARGV < 3 and left - 1 or -1
for _, old in ipairs(redis.call('ZRANGE', dead, 0, last)) do
  if redriven == left then
    break
  end
  local kept = redis.call('HMGET', message(old), 'id', 'ordering-key', 'expires-at-us')
  if not kept[1] then
    -- Somebody has deleted it by hand.
    redis.call('ZREM', dead, old)
  elseif #ARGV < 3 or meant[kept[1]] then
    local number = next_number()
    redis.call('RENAME', message(old), message(number))
    redis.call('HDEL', message(number), 'reason', 'dead-at-us')
    redis.call('HSET', message(number), 'attempts', 0, 'sent-at-us', ARGV[1])
    redis.call('ZREM', dead, old)
    enter(number, kept[2], kept[3], ARGV[1])
    redriven = redriven + 1
  end
end
return redriven
