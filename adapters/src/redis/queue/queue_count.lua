-- Counts a queue's messages, and changes nothing.
--
-- Answers how many there may be to receive, at least; when there may be more, µs since the epoch (-1: by itself never); and for how many
-- it is not yet time.
local function until_now(set)
  return redis.call('ZCOUNT', set, '-inf', ARGV[1])
end
local following = -1
for _, set in ipairs({later, leased}) do
  local first = redis.call('ZRANGEBYSCORE', set, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  if first and (following < 0 or tonumber(first) < following) then
    following = tonumber(first)
  end
end
local scheduled = redis.call('ZCOUNT', later, '(' .. ARGV[1], '+inf')
for _, number in ipairs(redis.call('ZRANGEBYSCORE', expires, '-inf', ARGV[1])) do
  local due = redis.call('ZSCORE', later, number)
  if due and tonumber(due) > now then
    scheduled = scheduled - 1
  end
end
return {redis.call('ZCARD', ready) + until_now(later) + until_now(leased), following, scheduled}
