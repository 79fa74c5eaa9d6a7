-- The calls of wrk: `before_token TOKEN before_id ID after_id`, the
-- tokens in turn. Arguments: a file that returns these parts and the first id,
-- a file with one token in each line.
local parts, tokens = nil, {}
local count = 0

function init(arguments)
  -- Far fewer collections: they would be measured too.
  collectgarbage("setpause", 1000)
  parts = dofile(arguments[1])
  for token in io.lines(arguments[2]) do tokens[#tokens + 1] = token end
  if #tokens == 1 then
    parts.before_id = parts.before_token .. tokens[1] .. parts.before_id
  end
end

local function several()
  count = count + 1
  local token = tokens[(count - 1) % #tokens + 1]
  return parts.before_token .. token .. parts.before_id .. (parts.first_id + count) .. parts.after_id
end

local function one()
  count = count + 1
  return parts.before_id .. (parts.first_id + count) .. parts.after_id
end

function request()
  return #tokens == 1 and one() or several()
end

function done(summary)
  local errors = summary.errors
  io.write(string.format(
    "RESULT %d %d %d %d %d\n", summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write, errors.timeout))
end
