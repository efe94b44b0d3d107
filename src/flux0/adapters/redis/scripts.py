"""The Lua scripts of the store, which Redis runs atomically, and their keys.

A session has one key: `{prefix}{{session}}` is the id of its turn. A turn has four keys:

- `...:info`, a hash: `process` (the id of the reading process), `max_bytes`, `last` (the number of
  the last event), `stop` (the last request to stop), and `end` after the end.
- `...:log`, a stream: each entry has consecutive events. The id of an entry is the number of its
  first event.
- `...:lease`, a string that expires if the reading process does not renew it.
- `...:followers`, a set: the ids of the processes that copy the log.

All keys of a session have the same hash tag, so that they are in one slot of a Redis Cluster. Every
key expires. The scripts use only commands of Redis 6.0, and no command with a random result before
a write, which Redis 6 rejects.
"""

from __future__ import annotations

from typing import Final

# Make a turn the turn of its session. The caller must know the present turn, because scripts get
# the names of all keys as arguments. Running the script again has no effect.
CLAIM: Final = """
local session, info, lease, previous_info, previous_lease = unpack(KEYS)
local id, expected, refuse, process, max_bytes, lease_ms, ttl_ms = unpack(ARGV)
local present = redis.call('GET', session) or ''
local running = expected ~= '' and redis.call('HEXISTS', previous_info, 'end') == 0
    and redis.call('EXISTS', previous_info) == 1
if present ~= id then
  if present ~= expected then return {'changed', present} end
  if refuse == '1' and running and redis.call('EXISTS', previous_lease) == 1 then
    return {'running', 0}
  end
  redis.call('SET', session, id, 'PX', ttl_ms)
  redis.call('HSET', info, 'process', process, 'max_bytes', max_bytes, 'last', 0)
  redis.call('PEXPIRE', info, ttl_ms)
  redis.call('SET', lease, 1, 'PX', lease_ms)
end
return {'claimed', running and 1 or 0}
"""

# Undo CLAIM. The previous turn becomes the turn of the session again if it is still kept.
RELEASE: Final = """
local session, previous_info = unpack(KEYS)
local id, previous = unpack(ARGV)
if redis.call('GET', session) == id then
  local ttl_ms = redis.call('PTTL', previous_info)
  if ttl_ms > 0 then
    redis.call('SET', session, previous, 'PX', ttl_ms)
  else
    redis.call('DEL', session)
  end
end
"""

# Append events and the end, renew the lease, and wake all followers. If Redis has lost its data,
# restore the turn. If `sent` is not the number of the last event, append nothing. Return the number
# of the last event and the last request to stop. Running the script again has no effect.
APPEND: Final = """
local session, info, log, lease, followers = unpack(KEYS)
local id, process, max_bytes, lease_ms, keep_ms, channel, is_released, replaced,
    sent, first, last, events, kept, turn_end = unpack(ARGV)
local ttl_ms = keep_ms + lease_ms
local present = redis.call('GET', session)
local stored = redis.call('HGET', info, 'last')
if not stored then
  stored = '0'
  redis.call('DEL', log)
  redis.call('HSET', info, 'process', process, 'max_bytes', max_bytes, 'last', stored)
  if present and present ~= id then redis.call('HSET', info, 'stop', replaced) end
end
if not present and is_released == '0' then
  redis.call('SET', session, id)
  present = id
end
local is_changed = false
if stored == sent and last ~= sent then
  redis.call('XADD', log, first .. '-0', 'events', events)
  redis.call('HSET', info, 'last', last)
  stored = last
  is_changed = true
  -- The last entry may have events that are still kept.
  local old = kept ~= '1' and redis.call('XRANGE', log, '-', kept .. '-0') or {}
  for i = 1, #old - 1 do redis.call('XDEL', log, old[i][1]) end
end
if stored == last and turn_end ~= '' then
  redis.call('HSET', info, 'end', turn_end)
  redis.call('DEL', lease)
  ttl_ms = keep_ms
  is_changed = true
else
  redis.call('SET', lease, 1, 'PX', lease_ms)
end
redis.call('PEXPIRE', info, ttl_ms)
redis.call('PEXPIRE', log, ttl_ms)
redis.call('PEXPIRE', followers, ttl_ms)
if present == id then redis.call('PEXPIRE', session, ttl_ms) end
if is_changed then
  for _, follower in ipairs(redis.call('SMEMBERS', followers)) do
    redis.call('PUBLISH', channel .. follower, id)
  end
end
return {stored, redis.call('HGET', info, 'stop') or ''}
"""

# Return the state of a turn and its next events, and register the process as a follower. If Redis
# has restored the turn, the entries may begin with other events than before. Then the first entry
# contains older events, too.
READ: Final = """
local info, log, lease, followers = unpack(KEYS)
local process, first, count, ttl_ms = unpack(ARGV)
local max_bytes, last, turn_end = unpack(redis.call('HMGET', info, 'max_bytes', 'last', 'end'))
if not turn_end then
  redis.call('SADD', followers, process)
  redis.call('PEXPIRE', followers, ttl_ms)
end
if not max_bytes then return {} end
local entries = redis.call('XRANGE', log, first .. '-0', '+', 'COUNT', count)
if tonumber(last) >= tonumber(first) and not (entries[1] and entries[1][1] == first .. '-0') then
  local before = redis.call('XREVRANGE', log, first .. '-0', '-', 'COUNT', 1)[1]
  if before then entries = redis.call('XRANGE', log, before[1], '+', 'COUNT', count) end
end
local events = {}
for i, entry in ipairs(entries) do
  events[2 * i - 1] = entry[1]
  events[2 * i] = entry[2][2]
end
return {max_bytes, last, turn_end or '', redis.call('PTTL', lease), events}
"""

# Ask the reading process to stop a turn.
STOP: Final = """
local process = redis.call('HGET', KEYS[1], 'process')
if process then
  redis.call('HSET', KEYS[1], 'stop', ARGV[1])
  redis.call('PUBLISH', ARGV[2] .. process, ARGV[3])
end
"""
