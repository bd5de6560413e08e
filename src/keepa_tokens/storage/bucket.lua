-- The fast path of a bucket, and compare-and-set. One key, one hash, one atomic step.
--
-- It mirrors fast_path.py and what that uses of arithmetic.py: same names, the same digits. Lua's doubles are exact
-- because everything that is kept stays within 2^52 and every product below 2^53: divide first, multiply the rest.
-- Whatever is not the fast path's business is handed over untouched: Python decides, and stores what it decided if
-- nobody has written meanwhile. Everything is computed before the first write. Functions stand where only those who
-- need them make them: making one costs as much as a division.
--
-- KEYS[1]: the bucket. ARGV: the verb, a nonce that the answer echoes, the caller's time ('': the server's), and what
-- the verb needs. _wire.py knows both sides.

local LIMIT, SECOND, DAY_US, REMEMBERED_US, TURN_US = 4503599627370496, 1000000, 86400000000, 600000000, 20000
local key, verb, nonce, given = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local min, max, ceil, fmod, format, match = math.min, math.max, math.ceil, math.fmod, string.format, string.match
local call = redis.call

local now
if given == '' then
  local time = call('TIME')
  now = time[1] * SECOND + time[2]
else
  now = tonumber(given)
end

-- All fields, or the numbers and the hold that the command names.
local function hand_over(what, named)
  local answer, names, texts = {nonce, format('%.0f', now), what}, nil, nil
  local function add(text)
    -- Bytes that are no text can't stand in every client's answer as they are.
    answer[#answer + 1] = string.gsub(text, '[^ -$&-~]', function(byte) return format('%%%02X', string.byte(byte)) end)
  end
  if what == 'all' then
    texts = call('HGETALL', key)
  else
    names = {
      'format', 'version', 'balance', 'refilled_at', 'carry', 'closed_until', 'paused_until', 'sequence', 'held',
      'open', 'due_at', 'last_place', 'firm_place', 'largest_place', 'terms_at', 'wide_capacity', 'reading_at', 'reading_sequence',
      'server_time', 'server_time_at', 'drift', 'kept_back', 'kept_back_at', 'probe_until', 'probe_failures',
      'probe_returned', 'reported_refill', 'reported_period_us', 'reported_capacity', 'stretched_us', 'quota', 'fast',
      'line', 'turn', 'hold:' .. named,
    }
    texts = call('HMGET', key, unpack(names))
  end
  for place = 1, #texts do
    local text = texts[place]
    if text then
      if names then
        add(names[place])
      end
      add(text)
    end
  end
  return answer
end

-- Who lost to another writer gets a turn: nobody else writes for a moment, which ends by itself.
local function is_anothers_turn(turn, mine)
  local till, whose = match(turn, '^([1-9]%d*) (.+)$')
  if not till or whose == mine then
    return false
  end
  local time = call('TIME')
  local left = till - (time[1] * SECOND + time[2])
  return left > 0 and left <= TURN_US
end

local function take_turn(mine)
  local time = call('TIME')
  call('HSET', key, 'turn', format('%.0f %s', time[1] * SECOND + time[2] + TURN_US, mine))
end

-- Writes, or changes nothing, and returns an error then or raises it: a full server and a missing right show at a write
-- that leaves nothing behind. lifetime: milliseconds, nil for ever. texts: names and texts to set, from `first` on; gone:
-- names to remove, from `from` to `till`.
local function write(is_new, version, lifetime, texts, first, gone, from, till)
  if is_new then
    call('HSET', key, unpack(texts, first))
    local kept = lifetime and redis.pcall('PEXPIRE', key, lifetime)
    if type(kept) == 'table' then
      for place = first, #texts, 2 do
        call('HDEL', key, texts[place])
      end
      return kept
    end
    return nil
  end
  if version then
    call('HSET', key, 'version', version)
  end
  if lifetime then
    call('PEXPIRE', key, lifetime)
  else
    call('PERSIST', key)
  end
  if from <= till then
    call('HDEL', key, nonce)
  end
  for place = first, #texts, 900 do
    call('HSET', key, unpack(texts, place, min(#texts, place + 899)))
  end
  for place = from, till, 900 do
    call('HDEL', key, unpack(gone, place, min(till, place + 899)))
  end
end

-- Compare-and-set: `version` and `refilled_at` as they were read, the writer's own token, the lifetime, what to hand
-- over if it fails, how many names to remove and the names, then names and texts to set.
if verb == 'store' then
  local version, refilled_at, mine, lifetime, what, named, removals = unpack(ARGV, 4, 10)
  local stored = call('HMGET', key, 'version', 'refilled_at', 'turn')
  if stored[3] == '0 ' .. mine then
    -- A client that lost the answer sends it again: it is stored.
    return nonce .. ' stored'
  end
  local is_taken = stored[3] and is_anothers_turn(stored[3], mine)
  if is_taken or (stored[1] or '') ~= version or (stored[2] or '') ~= refilled_at then
    if stored[1] and not is_taken then
      take_turn(mine)
    end
    return hand_over(what, named)
  end
  local left, till = call('PTTL', key), 10 + removals
  local kept = lifetime ~= '' and format('%.0f', max(lifetime, what == 'some' and left or lifetime)) or nil
  return write(left == -2, stored[1] or '0', kept, ARGV, till + 1, ARGV, 11, till) or nonce .. ' stored'
end
if verb == 'look' then
  return hand_over('all')
end

-- An attempt: the caller's terms, the id of a hold or '', and the verb's numbers.
local terms, id = ARGV[4], ARGV[5]
local stored
if verb == 'acquire' then
  -- Most buckets have nothing but these: then nothing else need be looked for.
  local fields = call('HLEN', key)
  if fields <= 6 then
    stored = call('HMGET', key, 'format', 'version', 'balance', 'refilled_at', 'carry', 'quota')
    for place = 1, 6 do
      fields = stored[place] and fields - 1 or fields
    end
    stored = fields == 0 and stored
  end
end
stored = stored or call('HMGET', key, 'format', 'version', 'balance', 'refilled_at', 'carry', 'quota', 'turn',
  'closed_until', 'paused_until', 'wide_capacity', 'terms_at', 'due_at', 'last_place', 'firm_place', 'held', 'open',
  'sequence', 'fast', 'largest_place', 'hold:' .. id, 'line')
local turn = verb == 'read' and ARGV[6] or ''
if stored[7] and is_anothers_turn(stored[7], turn) then
  return {nonce, format('%.0f', now), 'busy'}
elseif turn ~= '' and stored[2] then
  take_turn(turn)
end

-- The whole number that a stored text is, as state.py reads it; nil: it is none, or out of its range.
local function whole(text, least, most, missing)
  if not text then
    return missing
  end
  local number = tonumber(text)
  -- %d is quicker than %.0f. Where it is too short for a number, the fast path is not taken.
  return number and number >= least and number <= most and format('%d', number) == text and number or nil
end

local is_new = not stored[2] and not stored[4]
local quota = is_new and terms or stored[6] or ''
local q1, q2, q3, q4, q5, q6, q7, q8, q9, q10 =
  match(quota, '^(%d+) (%d+) (%d+) ([01]) (%d+) (%S+) (%S+) ([01]) (%d+) (%d+)$')
local stepped, synced, queues = q4 == '1', q8 == '1', q8 == '0' and q6 == '-'
local version, balance, refilled_at = tonumber(stored[2] or 0), tonumber(stored[3]), tonumber(stored[4])
local carry = tonumber(stored[5] or 0)
local due_at, last_place, firm_place, largest_place, held, open, sequence = LIMIT, 0, 0, 0, 0, 0, 0
local more = stored[12] or stored[13] or stored[14] or stored[15] or stored[16] or stored[17]
  or stored[19]
if synced or more then
  local missing = not synced and 0 or nil
  due_at = whole(stored[12], now + 1, now + 2 * DAY_US + 5 * SECOND, LIMIT)
  last_place = whole(stored[13], 0, LIMIT - 1, 0)
  firm_place = whole(stored[14], 0, LIMIT - 1, 0)
  largest_place = whole(stored[19], 0, LIMIT - 1, 0)
  held = whole(stored[15], 0, LIMIT - 1, missing)
  open = whole(stored[16], 0, LIMIT - 2, missing)
  sequence = whole(stored[17], 0, LIMIT / 2 - 1, missing)
end

if is_new then
  if not queues or more or stored[1] or stored[3] or stored[5] or stored[6] then
    return hand_over('all')
  end
  balance, refilled_at = tonumber(q7) or tonumber(q1), now
elseif stored[1] ~= '1' or not (q1 and version and balance and refilled_at and carry and due_at and last_place
      and firm_place and largest_place and held and open and sequence
      and version >= 0 and version < LIMIT - 1 and balance > -LIMIT and balance < LIMIT and carry >= 0
      and refilled_at >= 0 and refilled_at <= now + 5 * SECOND and now - refilled_at <= 365 * DAY_US)
    -- Each as `whole` reads it, all at once.
    or format('%d %d %d %d', version, balance, refilled_at, carry)
      ~= (stored[2] or 0) .. ' ' .. stored[3] .. ' ' .. stored[4] .. ' ' .. (stored[5] or 0) then
  return hand_over('all')
end
local digits, four = '%.0f', '%s %.0f %.0f %.0f %.0f%s'
if not is_new and refilled_at > 2^32 then
  -- What was just checked shows that %d is long enough.
  digits, four = '%d', '%s %d %d %d %d%s'
end
if stored[8] or stored[9] or stored[10] or stored[21] then
  return hand_over(stored[8] and 'all' or 'some', id)
end
if quota ~= terms then
  -- Other terms than the caller's serve for a minute after they replaced others, if they can have been written by us.
  local a, b = tonumber(q2), tonumber(q3)
  while b > 0 do
    a, b = b, fmod(a, b)
  end
  local rate = q2 / a
  local period = rate == 0 and SECOND or q3 / a
  local ours = format('%.0f %.0f %.0f %s %.0f %s %s %s %.0f %.0f', q1, q2, q3, q4, q5, q6, q7, q8, rate, period)
  local target, initial = whole(q6, 1, LIMIT - 1), whole(q7, 1 - LIMIT, tonumber(q1))
  if ours ~= quota or not whole(q1, 1, LIMIT - 1) or not whole(q5, 0, LIMIT) or rate * (period + 1) >= LIMIT
      or q3 == '0' or not (q6 == '-' or target) or not (q7 == '-' or initial) then
    return hand_over('all')
  end
  local terms_at = whole(stored[11], 0, now + 5 * SECOND)
  if not terms_at or now - terms_at >= 60 * SECOND or match(terms, ' ([01]) %d+ %d+$') ~= q8 then
    return hand_over('some', id)
  end
end
local capacity, overdraft, kept_back = tonumber(q1), tonumber(q5), 0
local refill, period = tonumber(stepped and q2 or q9), tonumber(stepped and q3 or q10)
if not queues then
  local a, b, c, d, e = match(stored[18] or '', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if a == '0' then
    return hand_over('some', id)
  end
  capacity, refill, period = whole(b, 1, LIMIT - 1), whole(c, 0, LIMIT), whole(d, 1, LIMIT - 1)
  kept_back = whole(e, 0, LIMIT - 1)
  if not (whole(a, now + 1, now + 60 * SECOND) and capacity and refill and period and kept_back)
      or refill * (period + 1) >= LIMIT then
    return hand_over('all')
  end
end

-- fmod is exact, so a - rest is a multiple of b and its division exact; floor(a / b) alone is one too many when a / b
-- rounds up to a whole number. From 0 on: rounds down.
local function divmod(a, b)
  local rest = fmod(a, b)
  return (a - rest) / b, rest
end

-- Rounds up.
local function upward(a, b)
  local quotient, rest = divmod(a, b)
  return rest > 0 and quotient + 1 or quotient
end

-- LIMIT or more, no longer exact: never.
local function instant(need, from, carried)
  if refill == 0 then
    return LIMIT
  elseif stepped then
    return from + upward(need, refill) * period
  end
  local periods, rest = divmod(need, refill)
  return from + periods * period + upward(rest * period - carried, refill)
end

if carry >= period then
  return hand_over('all')
end
if more and max(last_place, firm_place) > instant(capacity - min(0, balance), now, 0) + period + 5 * SECOND then
  return hand_over('all')
end

-- The balance flows to now.

local old_carry, old_last, old_firm, old_largest = carry, last_place, firm_place, largest_place
local old_due = due_at
if now > refilled_at then
  local periods, rest, gain = 0, now - refilled_at, 0
  if rest >= period then
    periods, rest = divmod(rest, period)
  end
  if refill == 0 then
    rest, carry = 0, 0
  end
  if stepped then
    refilled_at = now - rest
  else
    refilled_at, carry = now, rest * refill + carry
    if carry >= period then
      gain, carry = divmod(carry, period)
    end
  end
  gain = gain + periods * refill
  if gain >= capacity - balance then
    balance, carry = max(balance, capacity), 0
  else
    balance = balance + gain
  end
end
if stepped then
  carry = 0
end

-- The verbs. Whatever they hand over has changed nothing. Of many acquires those up to the first that is not served here
-- are carried out, and the answer tells of each the balance after it and its place.

local at, hold, ends, give_back, many = now, nil, nil, nil, ''
if verb == 'settle' or verb == 'refund' then
  local function flowed_until_last(from)
    if stepped then
      return upward(last_place - from, period) * refill
    end
    local periods, rest = divmod(last_place - from, period)
    return periods * refill + upward(rest * refill, period)
  end
  function give_back(tokens, own)
    local back = tokens
    if not synced and last_place > now then
      back = max(0, tokens - flowed_until_last(min(last_place, max(own, now))))
      if own < now then
        back = min(back, max(0, capacity - largest_place - max(0, balance + flowed_until_last(now))))
      end
      if back > 0 and own < last_place then
        firm_place = last_place
      elseif back > 0 and refill > 0 then
        local periods, rest = divmod(tokens, refill)
        last_place = max(firm_place, own - periods * period - (stepped and 0 or (divmod(rest * period, refill))))
      end
    end
    if back > 0 then
      balance = min(max(balance, capacity), balance + back)
      if balance >= capacity and not stepped then
        carry = 0
      end
    end
  end
end
if verb == 'acquire' or verb == 'reserve' then
  local first, tokens = 6, nil
  repeat
    local keep, place = tonumber(ARGV[first + 1]), now
    tokens = tonumber(ARGV[first])
    local alone, available = max(1, tokens - overdraft), synced and balance - held or balance
    local need = synced and held > 0 and tokens or alone
    if kept_back ~= 0 then
      keep = max(keep, min(keep + kept_back, divmod(capacity, 3), capacity - alone))
    end
    need = need + keep
    local is_served = tokens > 0 and held + tokens < LIMIT
    if is_served and available < need then
      place = max(now, instant(need - balance, refilled_at, carry))
      is_served = verb == 'acquire' and keep == 0 and queues and need <= capacity and place < LIMIT
        and place - now <= tonumber(ARGV[first + 2])
      if is_served then
        largest_place = last_place > now and max(tokens, largest_place) or tokens
        last_place = max(last_place, place)
      end
    end
    if not is_served then
      if first == 6 then
        return hand_over('some', id)
      end
      break
    end
    at = place
    if verb == 'acquire' or not synced then
      balance = max(1 - LIMIT, balance - tokens)
    end
    if verb == 'acquire' and #ARGV > 8 then
      many = many .. format(' %.0f %.0f', balance, at - now)
    end
    first = first + 3
  until verb == 'reserve' or first > #ARGV
  if verb == 'reserve' then
    ends = now + ARGV[8]
    if stored[20] or ends >= LIMIT then
      return hand_over('some', id)
    end
    sequence, held, open = sequence + 1, held + tokens, open + 1
    hold = format('%.0f %.0f %.0f %s 0%s', tokens, sequence, ends, ARGV[8], ARGV[9])
  end
elseif verb == 'settle' then
  local a, b, c, d, label = match(stored[20] or '', '^(%d+) (%d+) (%d+) (%d+) 0(.*)$')
  local tokens, life = whole(a, 0, held), whole(d, 1, DAY_US)
  if not (tokens and life and whole(b, 0, sequence) and whole(c, now + 1, now + life + 5 * SECOND)) or open == 0
      or not (label == '' or match(label, '^ ')) then
    return hand_over('some', id)
  end
  local cost = tonumber(ARGV[6]) or tokens
  held, open, hold = held - tokens, open - 1, false
  balance = max(1 - LIMIT, balance - (synced and cost or max(0, cost - tokens)))
  if not synced then
    give_back(max(0, tokens - cost), c - d)
  end
elseif verb == 'refund' and not stored[20] then
  sequence, ends = sequence + 1, now + REMEMBERED_US
  hold = format('0 %.0f %.0f %.0f %.0f', sequence, now, REMEMBERED_US, sequence)
  give_back(tonumber(ARGV[6]), tonumber(ARGV[7]) or -LIMIT)
else
  return hand_over('some', id)
end
due_at = min(due_at, ends or LIMIT)

-- How long it is kept: as `lifetime_us` says, but never shorter than what holds need that were not read here.

local left = (synced or stored[12] or stored[16]) and call('PTTL', key)
local lifetime = nil
if given == '' and not (q7 ~= '-' and tonumber(q7) < tonumber(q1)) and not (synced and left == -1) then
  local full_at = now
  if synced or refill == 0 then
    full_at = now + DAY_US - 10 * SECOND
  elseif ((capacity - balance) / refill + 1) * period > 40 * SECOND then
    full_at = instant(max(0, capacity - balance), refilled_at, 0)
  end  -- else it is full well within the shortest lifetime
  if full_at < LIMIT then
    lifetime = max(60000, ceil((max(full_at, ends or now) - now) / 1000) + 10000)
    lifetime = left and max(lifetime, left) or lifetime
  end
end

-- Whole numbers within 2^53 are written by call() to the last digit.
local now_text, balance_text = format(digits, now), format(digits, balance)
local changes = {
  'version', version + 1, 'balance', balance_text, 'refilled_at', refilled_at == now and now_text or refilled_at,
}
if carry ~= old_carry then
  changes[#changes + 1], changes[#changes + 2] = 'carry', carry
end
if last_place ~= old_last or firm_place ~= old_firm or largest_place ~= old_largest then
  for name, numbers in pairs({last_place = {last_place, old_last}, firm_place = {firm_place, old_firm},
      largest_place = {largest_place, old_largest}}) do
    if numbers[1] ~= numbers[2] then
      changes[#changes + 1], changes[#changes + 2] = name, numbers[1]
    end
  end
end
local gone = {hold == false and 'hold:' .. id or nil}
if verb ~= 'acquire' then
  for name, number in pairs({sequence = sequence, held = held, open = open}) do
    if number ~= 0 or synced then
      changes[#changes + 1], changes[#changes + 2] = name, number
    elseif hold == false then
      gone[#gone + 1] = name
    end
  end
end
if due_at ~= old_due then
  changes[#changes + 1], changes[#changes + 2] = 'due_at', due_at
end
if hold then
  changes[#changes + 1], changes[#changes + 2] = 'hold:' .. id, hold
end
local answer = nonce .. ' ' .. now_text .. ' ' .. balance_text
local kept = kept_back ~= 0 and min(kept_back, (divmod(capacity, 3))) or 0
if at > now or held > 0 or open > 0 or kept > 0 or many ~= '' then
  answer = format(four, answer, at - now, held, open, kept, many)
end

if is_new then
  if call('PTTL', key) ~= -2 then
    -- Something is there that says nothing of a bucket.
    return hand_over('all')
  end
  for _, text in ipairs({'format', '1', 'quota', terms}) do
    changes[#changes + 1] = text
  end
end
-- A full server goes on with what takes no more room.
return write(is_new, hold and (stored[2] or '0'), lifetime, changes, 1, gone, 1, #gone) or answer
