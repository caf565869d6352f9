-- Puts dead letters back as if they were just sent, the oldest first, so many of them that nobody waits for long.
--
-- ARGV: the time; how many at most; how many are looked at at most (-1: all); the number behind which they are; the number of the last
--       that is meant ('': the last that there is now); the ids of those that are meant, all where there are none.
-- Answers how many were put back; the number behind which to go on ('': there are no more); the number of the last that is meant.
tell()
pass()
local left, bound, after, last = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5]
if last == '' then
  last = redis.call('ZRANGE', dead, -1, -1)[1] or '0'
end
local redriven, meant, is_any = 0, {}, #ARGV < 6
for at = 6, #ARGV do
  meant[ARGV[at]] = true
end
local some = redis.call('ZRANGEBYSCORE', dead, '(' .. after, last, 'LIMIT', 0, bound)
for _, old in ipairs(some) do
  if redriven == left then
    return {redriven, '', last}
  end
  after = old
  local kept = redis.call('HMGET', message(old), 'id', 'ordering-key', 'expires-at-us')
  if not kept[1] then
    -- Somebody has deleted it by hand.
    redis.call('ZREM', dead, old)
  elseif is_any or meant[kept[1]] then
    local number = next_number()
    redis.call('RENAME', message(old), message(number))
    redis.call('HDEL', message(number), 'reason', 'dead-at-us')
    redis.call('HSET', message(number), 'attempts', 0, 'sent-at-us', ARGV[1])
    redis.call('ZREM', dead, old)
    enter(number, kept[2], kept[3], ARGV[1])
    redriven = redriven + 1
  end
end
return {redriven, #some == bound and after or '', last}
