-- Creates a consumer group, or moves one, and everything that was under way in it is of the past.
--
-- KEYS: the stream, what is kept of the group (see groups.rs).
-- ARGV: the group; 'create' or 'move'; an id that has to be one that is there or was told ('' where none has); the id behind
--       which the group begins ('$': behind all); its ack_wait in ms and its max_in_flight, for a new one.
-- Answers 'done'; 'missing' where there is none to move; 'mismatch' where there is one with other settings; 'unknown' where the id is
-- behind the end; or 'trimmed' and the first id that is there.
local stream, kept, group, told = KEYS[1], KEYS[2], ARGV[1], ARGV[3]
local exists, first, last = false, '0-0', '0-0'
if redis.call('EXISTS', stream) == 1 then
  for _, one in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    exists = exists or one[2] == group
  end
  local info, facts = redis.call('XINFO', 'STREAM', stream), {}
  for at = 1, #info, 2 do
    facts[info[at]] = info[at + 1]
  end
  last = facts['last-generated-id']
  first = facts['length'] == 0 and '0-0' or facts['recorded-first-entry-id']
end
if ARGV[2] == 'create' and exists then
  local there = redis.call('HMGET', kept, 'ack-wait-ms', 'max-in-flight')
  if there[1] and there[1] ~= ARGV[5] or there[2] and there[2] ~= ARGV[6] then
    return 'mismatch'
  end
  redis.call('HSET', kept, 'ack-wait-ms', ARGV[5], 'max-in-flight', ARGV[6])
  return 'done'
end
if ARGV[2] == 'move' and not exists then
  return 'missing'
end
local function is_before(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  ms, seq, other_ms, other_seq = tonumber(ms), tonumber(seq), tonumber(other_ms), tonumber(other_seq)
  return ms < other_ms or ms == other_ms and seq < other_seq
end
if told ~= '' then
  if is_before(last, told) then
    return 'unknown'
  end
  if told ~= '0-0' and (first == '0-0' or is_before(told, first)) then
    return {'trimmed', first}
  end
end
local behind = ARGV[4]
if behind ~= '$' and is_before(last, behind) then
  behind = '$'
end
if exists then
  redis.call('XGROUP', 'DESTROY', stream, group)
else
  redis.call('HSET', kept, 'ack-wait-ms', ARGV[5], 'max-in-flight', ARGV[6])
end
redis.call('XGROUP', 'CREATE', stream, group, behind, 'MKSTREAM')
local now = redis.call('TIME')
redis.call('HSET', kept, 'since-us', string.format('%.0f', tonumber(now[1]) * 1000000 + tonumber(now[2])))
redis.call('HINCRBY', kept, 'generation', 1)
return 'done'
