-- What the scripts of queues begin with. A message is the hash <queue>:message:<number>; its number stands in sorted sets that say what becomes
-- of it: all of them by number, those in line by priority and number, those whose time has not come and those that are leased by the
-- moment (µs since the epoch) at which that ends, those that expire likewise, and for each ordering key all of its messages by number.
--
-- KEYS: the queue, a hash of what is known about it. ARGV: the time, µs since the epoch; the rest is the script's.
local queue, now = KEYS[1], tonumber(ARGV[1])
local messages, ready, later = queue .. ':messages', queue .. ':ready', queue .. ':later'
local leased, expires, dead = queue .. ':leased', queue .. ':expires', queue .. ':dead'

local function message(number)
  return queue .. ':message:' .. number
end

local function of_key(key)
  return queue .. ':key:' .. key
end

-- A number that no other message has.
local function next_number()
  return string.format('%.0f', redis.call('HINCRBY', queue, 'last-number', 1))
end

-- Tells those who wait for messages. What cannot be told is not done: the script has changed nothing yet.
local function tell()
  redis.call('PUBLISH', '_prism:queue:' .. queue, '')
end

-- Puts a message in line, unless its time has not come or an older one has its key.
local function line_up(number)
  if redis.call('ZSCORE', later, number) then
    return
  end
  local kept = redis.call('HMGET', message(number), 'priority', 'ordering-key')
  if kept[2] and redis.call('ZRANGE', of_key(kept[2]), 0, 0)[1] ~= number then
    return
  end
  -- The highest priority first, then the oldest: (9 - priority) * 2^49 + number.
  redis.call('ZADD', ready, (9 - (kept[1] or 0)) * 562949953421312 + number, number)
end

-- Takes a message in that is due and expires then (false: never).
local function enter(number, key, expiry, due)
  redis.call('ZADD', messages, number, number)
  if key then
    redis.call('ZADD', of_key(key), number, number)
  end
  if expiry then
    redis.call('ZADD', expires, expiry, number)
  end
  if tonumber(due) > now then
    redis.call('ZADD', later, due, number)
  end
  line_up(number)
end

-- Takes a message out; the next one of its key comes in line.
local function take_out(number)
  local key = redis.call('HGET', message(number), 'ordering-key')
  for _, set in ipairs({messages, ready, later, leased, expires}) do
    redis.call('ZREM', set, number)
  end
  if key then
    redis.call('ZREM', of_key(key), number)
    local following = redis.call('ZRANGE', of_key(key), 0, 0)[1]
    if following then
      line_up(following)
    end
  end
end

local function remove(number)
  take_out(number)
  redis.call('UNLINK', message(number))
end

-- Makes a dead letter of a message, or removes it where the queue keeps none.
local function give_up(number, reason, at)
  if redis.call('HEXISTS', queue, 'max-deliveries') == 0 then
    return remove(number)
  end
  take_out(number)
  redis.call('HDEL', message(number), 'lease')
  redis.call('HSET', message(number), 'reason', reason, 'dead-at-us', string.format('%.0f', at))
  redis.call('ZADD', dead, number, number)
end

-- Whether a message has been delivered as often as it may be.
local function is_used_up(number, most)
  return most > 0 and tonumber(redis.call('HGET', message(number), 'attempts') or 0) >= most
end

local function deliveries_max()
  return tonumber(redis.call('HGET', queue, 'max-deliveries') or 0)
end

-- Ends a lease: the message is in line again, unless it has expired meanwhile.
local function free(number)
  redis.call('HDEL', message(number), 'lease')
  redis.call('ZREM', leased, number)
  local expiry = redis.call('HGET', message(number), 'expires-at-us')
  if expiry and tonumber(expiry) <= now then
    return remove(number)
  end
  if expiry then
    redis.call('ZADD', expires, expiry, number)
  end
  line_up(number)
end

local function drop_expired(most)
  for _, number in ipairs(redis.call('ZRANGEBYSCORE', expires, '-inf', ARGV[1], 'LIMIT', 0, most)) do
    remove(number)
  end
end

-- Lets the time pass: leases end, messages expire and become due; of each kind so many at once, so that nobody waits for long.
local function pass()
  local bound, most = 1000, deliveries_max()
  local ended = redis.call('ZRANGEBYSCORE', leased, '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, bound)
  for at = 1, #ended, 2 do
    if is_used_up(ended[at], most) then
      give_up(ended[at], 'MAX_DELIVERIES', ended[at + 1])
    else
      free(ended[at])
    end
  end
  drop_expired(bound)
  for _, number in ipairs(redis.call('ZRANGEBYSCORE', later, '-inf', ARGV[1], 'LIMIT', 0, bound)) do
    redis.call('ZREM', later, number)
    line_up(number)
  end
end

-- Whether a delivery of a message has not ended.
local function is_held(number, lease)
  local ends = redis.call('ZSCORE', leased, number)
  return ends and tonumber(ends) > now and redis.call('HGET', message(number), 'lease') == lease
end

-- How many bytes a message takes in an answer, at most.
local function bytes_of(fields)
  local bytes = 512
  for _, field in ipairs(fields) do
    bytes = bytes + #field
  end
  return bytes
end

