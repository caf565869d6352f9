-- Makes a durable subscription where there is none of its name: a consumer group of its topic's stream.
--
-- KEYS: the stream, what is kept of the subscription (see durable.rs).
-- ARGV: its name; its topic; its filter; whether it is ordered; an id that has to be one that is there or was told ('' where none has); the id
--       behind which it begins ('$': behind all).
-- Answers since when it stands and the id that it was handed last; 'mismatch' where there is one that hears something else; 'unknown' where
-- the id is behind the end; or 'trimmed' and the first id that is there.
local stream, kept, group, told, behind = KEYS[1], KEYS[2], ARGV[1], ARGV[5], ARGV[6]
local there = redis.call('HMGET', kept, 'topic', 'filter', 'ordered', 'since-us')
if there[1] and (there[1] ~= ARGV[2] or there[2] ~= ARGV[3] or there[3] ~= ARGV[4]) then
  return 'mismatch'
end
local function last_of_group()
  if redis.call('EXISTS', stream) == 1 then
    for _, one in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
      if one[2] == group then
        return one[8]
      end
    end
  end
end
local last_delivered = last_of_group()
if there[1] and last_delivered then
  return {there[4], last_delivered}
end
local function is_before(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  ms, seq, other_ms, other_seq = tonumber(ms), tonumber(seq), tonumber(other_ms), tonumber(other_seq)
  return ms < other_ms or ms == other_ms and seq < other_seq
end
local first, last = '0-0', '0-0'
if redis.call('EXISTS', stream) == 1 then
  local info, facts = redis.call('XINFO', 'STREAM', stream), {}
  for at = 1, #info, 2 do
    facts[info[at]] = info[at + 1]
  end
  last = facts['last-generated-id']
  first = facts['length'] == 0 and '0-0' or facts['recorded-first-entry-id']
end
if told ~= '' then
  if is_before(last, told) then
    return 'unknown'
  end
  if told ~= '0-0' and (first == '0-0' or is_before(told, first)) then
    return {'trimmed', first}
  end
end
if behind ~= '$' and is_before(last, behind) then
  behind = '$'
end
if not last_delivered then
  redis.call('XGROUP', 'CREATE', stream, group, behind, 'MKSTREAM')
end
local now = redis.call('TIME')
local since = string.format('%.0f', tonumber(now[1]) * 1000000 + tonumber(now[2]))
redis.call('HSET', kept, 'topic', ARGV[2], 'filter', ARGV[3], 'ordered', ARGV[4], 'since-us', since)
return {since, last_of_group()}
