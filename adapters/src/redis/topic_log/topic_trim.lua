-- Removes the events of a topic that all of its durable subscriptions are done with, but for those that came just now and the newest.
--
-- KEYS: the stream. ARGV: for how many ms an event stays in any case.
local stream = KEYS[1]
if redis.call('EXISTS', stream) == 0 then
  return 0
end
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function earlier(one, other)
  local ms, seq = parts(one)
  local other_ms, other_seq = parts(other)
  return (ms < other_ms or ms == other_ms and seq < other_seq) and one or other
end
local now = redis.call('TIME')
local recent = math.max(0, tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) - tonumber(ARGV[1]))
local info, from = redis.call('XINFO', 'STREAM', stream), string.format('%.0f-0', recent)
for at = 1, #info, 2 do
  if info[at] == 'last-generated-id' then
    from = earlier(from, info[at + 1])
  end
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local pending = redis.call('XPENDING', stream, group[2])
  from = earlier(from, pending[1] > 0 and pending[2] or group[8])
end
return redis.call('XTRIM', stream, 'MINID', '~', from, 'LIMIT', 10000)
