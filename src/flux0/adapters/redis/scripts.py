"""The store's Lua scripts, which Redis runs atomically. Running a script again has no effect.

CLAIM makes a turn the turn of its session, and gives it a generation: a number that is larger than
all earlier generations in this session. APPEND adds batches of events and, at last, the turn's end.
READ returns the next events to a process that follows the turn, and registers the process, so that
APPEND wakes it over its channel. STOP asks the reading process to stop the turn. RELEASE undoes
CLAIM. If Redis has lost the turn (restart, failover, eviction), APPEND returns nothing, and RESTORE
creates the turn again. APPEND also compares its turn with the session's present turn. If the
session has no turn or an older turn, the turn of APPEND becomes the session's turn. If the session
has a newer turn, which was claimed while Redis had lost the turn of APPEND, the turn of APPEND is
stopped. Each process renews its lease with RENEW. If a process does not, LOSE ends its turns. If
the process reaches Redis again, APPEND continues its turns.

The following keys are used:

- `{prefix}{{session}}` is the hash of a session: the id of its `turn`, the turn's `generation` and
  `process`, and `before`: the generation of the previous turn, if that turn was still running.
- `{prefix}{{session}}:{turn}` is the hash of a turn: `generation`, `process`, `max_bytes`, `last`
  (the number of the last event), `trace_parent`, `stop` (the last request to stop), `end`, `lost`
  (the end that another process has recorded, because the reading process did not renew its lease),
  and a field `@channel` for each process that follows the turn.
- `{prefix}{{session}}:{turn}:log` is a stream with the turn's events. The id of an entry is the
  number of the last event in the entry.
- The name of a process is the key of its lease, whose value is a counter. The channel on which the
  process listens has the same name.

All keys of a session have the same hash tag, so they are in one slot of a Redis Cluster. Every key
expires.
"""

from __future__ import annotations

from typing import Final

# The script CLAIM makes a new turn the turn of its session. The caller passes the session's present
# turn (`expected`), because a script gets all its keys as arguments. The reply is empty if the
# session has a different turn. Otherwise, the reply has two values: whether the present turn is
# running, and the new turn's generation. If the present turn is running, and `refuse` is 1, the
# session keeps the present turn, and the second value is empty. A generation is at least the
# current time in microseconds, so generations increase even if Redis has lost the last generation.
CLAIM: Final = """
local session, info, expected_info = unpack(KEYS)
local id, expected, refuse, process, max_bytes, ttl_ms = unpack(ARGV)
local present, generation = unpack(redis.call("HMGET", session, "turn", "generation"))
local running = redis.call("HEXISTS", expected_info, "max_bytes") == 1
    and redis.call("HEXISTS", expected_info, "end") == 0
    and redis.call("HEXISTS", expected_info, "lost") == 0
if present ~= id then
  if (present or "") ~= expected then return {} end
  if running and refuse == "1" then return {1, ""} end
  local before, time = running and generation or "", redis.call("TIME")
  generation = math.max((generation or 0) + 1, time[1] * 1000000 + time[2])
  generation = string.format("%.0f", generation)
  redis.call("HSET", session, "turn", id, "generation", generation, "process", process,
      "before", before)
  redis.call("PEXPIRE", session, ttl_ms)
  redis.call("HSET", info, "generation", generation, "process", process, "max_bytes", max_bytes,
      "last", 0)
  redis.call("PEXPIRE", info, ttl_ms)
end
return {running and 1 or 0, generation}
"""

# The script RELEASE undoes the script CLAIM for a turn whose message was not sent. If Redis still
# has the turn that CLAIM replaced, and the replaced turn was not released, it becomes the session's
# turn again. Otherwise, the session has no turn.
RELEASE: Final = """
local session, info, previous_info = unpack(KEYS)
local id, previous = unpack(ARGV)
if redis.call("HGET", session, "turn") ~= id then return redis.call("HDEL", info, "process") end
local generation, process = unpack(redis.call("HMGET", previous_info, "generation", "process"))
if not process then return redis.call("DEL", session) end
redis.call("HSET", session, "turn", previous, "generation", generation, "process", process,
    "before", "")
redis.call("PEXPIRE", session, redis.call("PTTL", previous_info))
"""

# The script APPEND adds `events` and `facts` to a turn. `facts` has lines such as `end {...}`: the
# name and the value of a field, which is set only once. `generation` is 0 if the turn's message was
# not sent. No event is added if `sent` is not the last event's number in Redis, or if Redis has the
# turn's end. If another process has recorded that the turn is lost, the record is deleted. Stream
# entries are removed if all their events are older than the event `kept`. The reply is the last
# event's number and the last request to stop the turn. The reply is empty if Redis has lost the
# turn.
APPEND: Final = """
local session, info, log = unpack(KEYS)
local generation, ttl_ms, sent, last, kept, events, facts = unpack(ARGV)
local fields, state = redis.call("HGETALL", info), {}
for i = 1, #fields, 2 do state[fields[i]] = fields[i + 1] end
local stored = state["end"] and last or state.last
if not state.last or (state.last ~= "0" and redis.call("EXISTS", log) == 0) then return {} end
if state.lost then redis.call("HDEL", info, "lost") end
if events ~= "" and stored == sent then
  redis.call("XADD", log, "MINID", kept, last .. "-0", "events", events)
  redis.call("HSET", info, "last", last)
  stored = last
end
if stored == last then
  for name, value in facts:gmatch("(%S+) ([^\\n]*)\\n") do
    redis.call("HSETNX", info, name, value)
  end
end
if events ~= "" or facts ~= "" then
  for field in pairs(state) do
    if field:sub(1, 1) == "@" then redis.call("PUBLISH", field:sub(2), info) end
  end
end
redis.call("PEXPIRE", info, ttl_ms)
redis.call("PEXPIRE", log, ttl_ms)
local present, before = unpack(redis.call("HMGET", session, "generation", "before"))
if generation ~= "0" and (not present or tonumber(present) < tonumber(generation)) then
  redis.call("HSET", session, "turn", info:sub(#session + 2), "generation", generation,
      "process", state.process, "before", "")
  present = generation
end
if present == generation then
  redis.call("PEXPIRE", session, ttl_ms)
elseif generation ~= "0" and before ~= generation then
  state.stop = "replaced"
end
return {stored, state.stop or ""}
"""

# The script RESTORE stores a turn again that Redis has lost. The turn has no events until APPEND
# adds its events. RESTORE also sends a message on the channel `everyone`. The processes that follow
# the turn then run READ, so that APPEND wakes them again.
RESTORE: Final = """
local info, log = unpack(KEYS)
local generation, process, max_bytes, ttl_ms, everyone = unpack(ARGV)
redis.call("DEL", log)
redis.call("HSET", info, "generation", generation, "process", process, "max_bytes", max_bytes,
    "last", 0)
redis.call("PEXPIRE", info, ttl_ms)
redis.call("PUBLISH", everyone, info)
"""

# The script READ returns the state of a turn, and at most `limit` stream entries, from the entry
# that has the event number `first`. This entry can also contain events before `first`. The reply is
# empty if Redis does not have the turn. If `asks` is 1, READ asks the process that reads the turn
# to check the turn: if the process no longer knows the turn, it ends the turn in Redis. `reader` is
# the name of this process as far as the caller knows, because Redis may have lost the turn. The
# last value of the reply is the number of listeners that got the question.
READ: Final = """
local info, log = unpack(KEYS)
local process, first, limit, asks, reader = unpack(ARGV)
local present, max_bytes, last, turn_end, lost, trace_parent =
    unpack(redis.call("HMGET", info, "process", "max_bytes", "last", "end", "lost", "trace_parent"))
local listeners = 1
reader, turn_end = present or reader, turn_end or lost
if asks == "1" and reader ~= "" and not turn_end then
  listeners = redis.call("PUBLISH", reader, info)
end
if not max_bytes then return {} end
if not turn_end then redis.call("HSET", info, "@" .. process, 1) end
local entries = redis.call("XRANGE", log, first, "+", "COUNT", limit)
return {max_bytes, reader, last, turn_end or "", trace_parent or "", entries, listeners}
"""

STOP: Final = """
local process = redis.call("HGET", KEYS[1], "process")
if process then
  redis.call("HSET", KEYS[1], "stop", ARGV[1])
  redis.call("PUBLISH", process, KEYS[1])
end
"""

# The script LOSE ends a turn whose reading process was lost. The reply is 1 if this call has ended
# the turn. The reply is 0 if the turn has already ended, or another process has restored the turn.
LOSE: Final = """
local process, turn_end, ttl_ms = unpack(ARGV)
local present, ended = unpack(redis.call("HMGET", KEYS[1], "process", "end"))
if present ~= process or ended then return 0 end
for _, key in ipairs(KEYS) do redis.call("PEXPIRE", key, ttl_ms) end
return redis.call("HSETNX", KEYS[1], "lost", turn_end)
"""

# The script RENEW renews the lease of a process: a key with a counter. The reply is the previous
# counter. If the previous counter is missing or too low, Redis has lost data.
RENEW: Final = """
return redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2], "GET")
"""
