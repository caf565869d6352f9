-- How far a consumer group is.
--
-- KEYS: the stream, what is kept of the group. ARGV: the group.
-- Answers its generation, the last id up to which everything is done ('' where nothing is known to be), and how many records are not done
-- ('' where Redis does not know). Nothing where there is no such group.
local found
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, one in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    if one[2] == ARGV[1] then
      found = {}
      for at = 1, #one, 2 do
        found[one[at]] = one[at + 1]
      end
    end
  end
end
if not found then
  return {}
end
local done, lag = found['last-delivered-id'], ''
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
if pending[1] > 0 then
  local before = redis.call('XREVRANGE', KEYS[1], '(' .. pending[2], '-', 'COUNT', 1)[1]
  done = before and before[1] or ''
end
if done == '0-0' then
  done = ''
end
if found['lag'] then
  lag = string.format('%.0f', found['lag'] + pending[1])
end
return {redis.call('HGET', KEYS[2], 'generation') or '1', done, lag}
