"""The Lua scripts: every change to a shared breaker happens in one of them, atomically.

All keys of one breaker carry the hash tag `{SERVICE}`, so that a script's keys are in one Cluster
slot. The clock is Redis' own (`TIME`); effects are replicated (Redis 5 and later), so reading it
before writing is safe. The generation is `max(generation + 1, now in ms)`: it grows even if Redis
restarts empty, where a counter would start over and late outcomes would pass for current ones.

The hash `meta` is authoritative; `state`, `failures`, `last_failure` and `half_open_calls` repeat
it for redis-cli and for other readers of these keys. KEYS are those of `KEYS` in order, ARGV[1] is
a JSON object. The reply is a JSON object, parsed to `SharedState` of messages.py. A published
message contains only the name and generation of a breaker to read, because others can publish too.
"""

from __future__ import annotations

#: Suffixes of the keys, in the order of KEYS[].
KEYS = (
    "state",
    "failures",
    "last_failure",
    "half_open_calls",
    "meta",
    "probes",
    "recent",
    "log",
)

_PREAMBLE = """
local A = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local meta = {}
local flat = redis.call('HGETALL', KEYS[5])
for i = 1, #flat, 2 do meta[flat[i]] = flat[i + 1] end
local exists = #flat > 0
local function number(text, most)
  local value = tonumber(text or '0') or 0
  if value >= 0 and value <= most then return value end
  return 0
end
local MOST = 4e15
local gen = number(meta.gen, MOST)
local state = meta.state or 'closed'
local failures = number(meta.failures, 1e9)
local successes = number(meta.successes, 1e9)
local opens = number(meta.opens, 1e9)
local since = number(meta.since, MOST)
local until_ms = number(meta['until'], MOST)
local reason = meta.reason or ''
local by = meta.by or ''
local dirty_before = failures > 0
local last_failure = nil
local made = false
local changed = false
local granted = {}
local unpublished = nil

-- If the state began in the future, the clock has stepped back or is another server's: let it begin
-- now and keep its length, but no longer than the longest allowed.
if since > now then
  if until_ms > 0 then until_ms = now + math.max(0, until_ms - since) end
  since, changed = now, true
  redis.call('DEL', KEYS[6])
end
local longest = state == 'open' and A.longest_ms or A.forced_ms
if until_ms > now + longest then until_ms, changed = now + longest, true end

local function transition(to, why, over, restored)
  local from = state
  gen = math.max(gen + 1, now)
  state, reason, by, since, until_ms = to, why, A.owner, now, over
  failures, successes = 0, 0
  if to == 'closed' then opens = 0 end
  redis.call('DEL', KEYS[6])
  redis.call('RPUSH', KEYS[8], cjson.encode({gen = gen, from = from, to = to, reason = why,
    by = A.owner, tid = A.tid, restored = restored or false, at = now / 1000}))
  redis.call('LTRIM', KEYS[8], -50, -1)
  made, changed = true, true
end

local function open(why)
  opens = opens + 1
  local ms = math.min(A.open_ms * 2 ^ math.min(opens - 1, 30), A.max_open_ms)
  if ms > A.open_ms then ms = ms * A.jitter end
  transition('open', why, now + math.floor(ms))
end

local function remember(list)
  for _, failure in ipairs(list) do redis.call('RPUSH', KEYS[7], cjson.encode(failure)) end
  redis.call('LTRIM', KEYS[7], -10, -1)
end

local function snapshot(known, with_recent)
  local log, recent = {}, {}
  for _, text in ipairs(redis.call('LRANGE', KEYS[8], -10, -1)) do
    local entry = cjson.decode(text)
    if entry.gen > known or entry.by == A.owner then log[#log + 1] = entry end
  end
  if with_recent then
    for i, text in ipairs(redis.call('LRANGE', KEYS[7], 0, -1)) do
      recent[i] = cjson.decode(text)
    end
  end
  return cjson.encode({name = A.name, gen = gen, state = state, now = now, since = since,
    ['until'] = until_ms, failures = failures, successes = successes, opens = opens,
    reason = reason, by = by, log = log, recent = recent, granted = granted,
    unpublished = unpublished})
end

local function finish()
  if changed then
    local ttl = A.ttl_ms + math.max(0, until_ms - now)
    redis.call('HSET', KEYS[5], 'gen', string.format('%.0f', gen), 'state', state,
      'failures', failures, 'successes', successes, 'opens', opens,
      'since', string.format('%.0f', since), 'until', string.format('%.0f', until_ms),
      'reason', reason, 'by', by)
    redis.call('SET', KEYS[1], state)
    redis.call('SET', KEYS[2], failures)
    if last_failure then redis.call('SET', KEYS[3], last_failure) end
    redis.call('SET', KEYS[4], redis.call('ZCARD', KEYS[6]))
    for i = 1, 8 do redis.call('PEXPIRE', KEYS[i], ttl) end
  end
  if made or (failures > 0) ~= dirty_before then
    local sent = redis.pcall('PUBLISH', A.channel,
      cjson.encode({name = A.name, gen = string.format('%.0f', gen), by = A.owner}))
    if type(sent) == 'table' and sent.err then unpublished = sent.err end
  end
  return snapshot(A.known, made or gen > A.known)
end
"""

# Reports outcomes. Dropped unless of this generation; a breaker new to Redis takes any.
REPORT = (
    _PREAMBLE
    + """
local current = exists and A.gen == gen
if not exists and #A.probes == 0 then
  gen, current = math.max(A.gen, 1), true
end
if current and state == 'closed' then
  changed = true
  if A.reset then failures = 0 end
  if A.failures > 0 then
    failures = failures + A.failures
    last_failure = string.format('%.3f', now / 1000)
  end
  remember(A.recent)
  if A.trip ~= '' then
    open(A.trip)
  elseif failures >= A.threshold then
    open(failures .. ' consecutive failures in the fleet, the last: ' .. A.last_kind)
  end
elseif current and state == 'half_open' then
  changed = true
  remember(A.recent)
  for _, probe in ipairs(A.probes) do
    local over = redis.call('ZSCORE', KEYS[6], probe[1])
    redis.call('ZREM', KEYS[6], probe[1])
    if over and tonumber(over) > now then
      if probe[2] == 'failure' then
        open('a probe failed: ' .. A.last_kind)
        break
      elseif probe[2] == 'success' then
        successes = successes + 1
        if successes >= A.max_calls then
          transition('closed', successes .. ' probes succeeded', 0)
          break
        end
      end
    end
  end
end
return finish()
"""
)

# Grants probe leases, and ends an open or forced time.
ACQUIRE = (
    _PREAMBLE
    + """
if (state == 'open' or state == 'forced_open') and now >= until_ms then
  transition('half_open', 'open time is over', 0)
elseif state == 'open' and A.well ~= '' and A.known == gen then
  transition('half_open', A.well, 0)
elseif state == 'forced_closed' and now >= until_ms then
  transition('closed', 'forced time is over', 0)
end
if state == 'half_open' and A.want > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now)
  redis.call('ZREMRANGEBYSCORE', KEYS[6], now + 2 * A.lease_ms, '+inf')  -- from another clock
  local free = A.max_calls - successes - redis.call('ZCARD', KEYS[6])
  for i = 1, math.min(free, A.want) do
    local lease = A.tid .. ':' .. i
    redis.call('ZADD', KEYS[6], now + A.lease_ms, lease)
    granted[i] = lease
    changed = true
  end
end
return finish()
"""
)

# Sets the state by hand, for the whole fleet.
FORCE = (
    _PREAMBLE
    + """
gen = math.max(gen, math.min(A.known, MOST))  -- newer than any state known
if A.to == 'closed' and state == 'closed' then
  gen, failures, changed, made = math.max(gen + 1, now), 0, true, true
else
  transition(A.to, A.reason, A.for_ms > 0 and now + A.for_ms or 0)
end
return finish()
"""
)

# Restores the state known here to a Redis that is back. Always writes, so that a server that only
# answers reads does not count as being back.
MERGE = (
    _PREAMBLE
    + """
local had = gen
changed = true
if A.gen > gen then gen, made = A.gen, true end
if gen == 0 then gen = now end
-- Our state replaces a closed breaker, unless that closed after ours opened. A state set by hand
-- here during the outage also replaces one that nobody has changed in Redis since.
local newer = not exists or A.gen >= had
local by_hand = A.state == 'forced_open' or A.state == 'forced_closed'
if A.remaining_ms >= 0 and state ~= A.state
   and ((state == 'closed' and (newer or since < now - A.age_ms)) or (by_hand and newer)) then
  remember(A.recent)
  transition(A.state, A.reason, now + A.remaining_ms, true)
  opens = A.opens
elseif exists and A.gen > had and A.state == 'closed' and state ~= 'closed' then
  -- After a failover to a replica that had not received the closing yet.
  transition('closed', A.reason, 0, true)
end
return finish()
"""
)

# Reads the state. Writes nothing, unless the clock is wrong (see the preamble).
LOOK = _PREAMBLE + "\nreturn finish()\n"

# Polls all breakers at once: KEYS are their `meta`. Returns a list of {generation, failures, 1 if
# the clock has stepped back}. It is cheap, and all that an idle sidecar sends.
PEEK = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local found = {}
for i, key in ipairs(KEYS) do
  local meta = redis.call('HMGET', key, 'gen', 'failures', 'since')
  local ahead = (tonumber(meta[3] or '0') or 0) > now
  found[i] = {meta[1] or '0', meta[2] or '0', ahead and 1 or 0}
end
return cjson.encode(found)
"""
