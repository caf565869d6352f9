-- Removes what a stream's retention does not keep, so much of it that Redis is not held up for long.
--
-- KEYS: the stream, its retention (see retention.rs).
-- Answers 1 where nothing that may go is left.
local most = 10000
local kept = redis.call('HMGET', KEYS[2], 'max-age-ms', 'max-records')
local age, records, is_done = tonumber(kept[1]), tonumber(kept[2]), 1
if age then
  local now = redis.call('TIME')
  local oldest = string.format('%.0f', math.max(0, tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) - age))
  -- Whole nodes first, of which so many may go; the rest of one node is quick.
  if redis.call('XTRIM', KEYS[1], 'MINID', '~', oldest, 'LIMIT', most) < most / 2 then
    redis.call('XTRIM', KEYS[1], 'MINID', '=', oldest)
  else
    is_done = 0
  end
end
if records then
  local length = redis.call('XLEN', KEYS[1])
  local surplus = length - records
  if surplus > most then
    surplus, is_done = most, 0
  end
  if surplus > 0 then
    redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', string.format('%.0f', length - surplus))
  end
end
return is_done
