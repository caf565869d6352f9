-- Checks conditions and, if all of them hold, carries out operations and stores messages.
--
-- KEYS: a key per condition, then a key per operation.
-- ARGV: the number of conditions; bytes that the values of failures may take together; the longest value that is told, plus 1;
--       per condition what is required ('absent', 'exists', 'value', 'version') and of which value or digest;
--       per operation what is to be done ('put', 'keep', 'until', 'delete'), until when, and the value; where there are messages, the
--       stream that they go to, and per message how many parts its fields and their values are, and these.
-- Answers 1, or for each condition that does not hold: its number from 0, the value or nil, when it expires. The first is
-- always told, of the others as many as fit.
local conditions, room, value_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local failures, at = {}, 4
for number = 1, conditions do
  local key, required, operand = KEYS[number], ARGV[at], ARGV[at + 1]
  at = at + 2
  local holds
  if required == 'absent' then
    holds = redis.call('EXISTS', key) == 0
  elseif required == 'exists' then
    holds = redis.call('EXISTS', key) == 1
  elseif required == 'value' then
    holds = redis.call('GET', key) == operand
  else
    local value = redis.call('GET', key)
    holds = value and redis.sha1hex(value) == operand
  end
  if not holds then
    local value = redis.call('GET', key)
    if value and #value > value_max then
      value = string.sub(value, 1, value_max)
    end
    local taken = value and #value + 128 or 16
    if #failures == 0 or taken <= room then
      failures[#failures + 1] = {number - 1, value, redis.call('PEXPIRETIME', key)}
      room = room - taken
    end
  end
end
if #failures > 0 then
  return failures
end
local outbox = ARGV[at + 3 * (#KEYS - conditions)]
if outbox then
  -- What is no stream is refused before anything is done.
  redis.call('XLEN', outbox)
end
for number = conditions + 1, #KEYS do
  local key, action, expiry, value = KEYS[number], ARGV[at], ARGV[at + 1], ARGV[at + 2]
  at = at + 3
  if action == 'put' then
    redis.call('SET', key, value)
  elseif action == 'keep' then
    redis.call('SET', key, value, 'KEEPTTL')
  elseif action == 'until' then
    redis.call('SET', key, value, 'PXAT', expiry)
  else
    redis.call('UNLINK', key)
  end
end
at = at + 1
while at <= #ARGV do
  local parts = tonumber(ARGV[at])
  redis.call('XADD', outbox, '*', unpack(ARGV, at + 1, at + parts))
  at = at + 1 + parts
end
return 1
