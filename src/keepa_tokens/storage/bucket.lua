-- The fast path of a bucket, and compare-and-set. One key, one hash, one atomic step.
--
-- It mirrors fast_path.py and what that uses of arithmetic.py: same names, the same digits. Lua's doubles are exact
-- because everything that is kept stays within 2^52 and every product below 2^53: divide first, multiply the rest.
-- Whatever else comes is handed over untouched: Python decides, and stores what it decided if nobody has written
-- meanwhile. So one block decides, and `break` leaves it. Then the bucket is handed over, or written: all is computed.
--
-- To be quick, functions use no local of the script (each one used would be allocated anew in every call), and numbers
-- are made texts here (call() takes three times as long for that).
--
-- KEYS[1]: the bucket. ARGV: the verb, a nonce that the answer echoes, the caller's time ('': the server's), and what
-- the verb needs. _wire.py knows both sides.

local LIMIT, SECOND, DAY_US, REMEMBERED_US, TURN_US = 4503599627370496, 1000000, 86400000000, 600000000, 20000
local key, verb, nonce, given, terms = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call, min, max, fmod, format, match = redis.call, math.min, math.max, math.fmod, string.format, string.match

local time = call('TIME')
local clock = time[1] * SECOND + time[2]
local now = given == '' and clock or tonumber(given)

-- Most buckets have nothing but these fields, and then no others are read.
local version, balance, refilled_at, carry, quota =
  unpack(call('HMGET', key, 'version', 'balance', 'refilled_at', 'carry', 'quota'))
local fields = call('HLEN', key)
local is_new, more, id = fields == 0, fields > (carry and 5 or 4), verb ~= 'acquire' and ARGV[5] or ''
local turn, hold, newer, line, free, closed_until, paused_until, wide_capacity, terms_at, fast, due_at, last_place
local firm_place, largest_place, held, open, sequence
if more then
  turn, hold, newer, line, free, closed_until, paused_until, wide_capacity, terms_at, fast, due_at, last_place,
    firm_place, largest_place, held, open, sequence = unpack(call('HMGET', key, 'turn', 'hold:' .. id, 'format',
    'line', 'free', 'closed_until', 'paused_until', 'wide_capacity', 'terms_at', 'fast', 'due_at', 'last_place',
    'firm_place', 'largest_place', 'held', 'open', 'sequence'))
end

-- The whole number that a stored text is, as state.py reads it; nil: it is none, or out of its range.
local function whole(text, least, most, missing)
  if not text then return missing end
  local number = tonumber(text)
  return number and number >= least and number <= most and string.format('%d', number) == text and number or nil
end

-- Rounds down, from 0 on. fmod is exact, so a - rest is a multiple of b and its division exact; floor(a / b) alone is
-- one too many when a / b rounds up to a whole number.
local function divmod(a, b)
  local rest = math.fmod(a, b)
  return (a - rest) / b, rest
end

-- The instant at which `need` more tokens have come; from 2^52 on: never.
local function instant(need, from, refill, period, stepped, carried)
  if refill == 0 then return math.huge end
  local rest = math.fmod(need, refill)
  local at = from + (need - rest) / refill * period
  if stepped then return rest > 0 and at + period or at end
  local due = rest * period - (carried or 0)
  rest = math.fmod(due, refill)
  at = at + (due - rest) / refill
  return rest > 0 and at + 1 or at
end

-- The result. what: to be handed over, 'all' fields or 'some' (the numbers and the hold that is named). Or else what is
-- written: names and texts to set, names to remove, a lifetime (nil: for ever), and the answer. grows: a full server
-- must refuse it.
local what, sets, gone, lifetime, grows, answer

repeat  -- decides, once
  if verb == 'look' then what = 'all' break end

  -- A caller that lost to another writer, or asks beforehand, gets a turn: a moment, ending by itself, to write alone.
  local mine = (verb == 'store' or verb == 'read') and ARGV[6] or ''
  if turn then
    local till, whose = match(turn, '^(%d+) (.+)$')
    local left = whose and whose ~= mine and till - clock or 0
    if left > 0 and left <= TURN_US then return {nonce, format('%.0f', now), 'busy'} end
  end

  -- Compare-and-set: `version` as it was read, the hold that is named, the writer's own token, `refilled_at` as it was
  -- read, the lifetime, what to hand over if it fails, then names and texts; '' removes.
  if verb == 'store' and turn == '0 ' .. mine then
    -- It is stored already: a client that lost the answer has sent it again.
    return nonce .. ' stored'
  elseif verb == 'store' and (version or '') == terms and (refilled_at or '') == ARGV[7] then
    sets, gone, grows, answer = {}, {}, true, nonce .. ' stored'
    for place = 10, #ARGV, 2 do
      if ARGV[place + 1] == '' then
        gone[#gone + 1] = ARGV[place]
      else
        sets[#sets + 1], sets[#sets + 2] = ARGV[place], ARGV[place + 1]
      end
    end
    if ARGV[8] ~= '' then
      lifetime = format('%.0f', max(ARGV[8], ARGV[9] == 'some' and call('PTTL', key) or ARGV[8]))
    end
    break
  end
  if mine ~= '' and version then
    call('HSET', key, 'turn', format('%.0f %s', clock + TURN_US, mine))
  end
  if verb == 'store' then what = ARGV[9] break end

  -- An attempt has the caller's terms, the id of a hold, and the verb's numbers. Is all sound, and nothing unusual due?
  if is_new then quota = terms end
  if newer or not is_new and not (version and balance and refilled_at and quota) then what = 'all' break end
  local c, r, p, others = match(quota, '^(%d+) (%d+) (%d+)(.*)$')
  local stepped, overdraft, target, initial, synced = '0', '0', '-', '-', '0'
  if others ~= '' then
    stepped, overdraft, target, initial, synced = match(others or '', '^ ([01]) (%d+) (%S+) (%S+) ([01])$')
  end
  -- A server whose %d is too short can't do this.
  if not synced or format('%d', LIMIT) ~= '4503599627370496' then what = 'all' break end
  stepped, synced = stepped == '1', synced == '1'
  local queues = not synced and target == '-'
  local capacity, refill, period, kept_back = tonumber(c), tonumber(r), tonumber(p), 0
  local starts_full = initial == '-' or tonumber(initial) == capacity
  local a, b = refill, period
  while a > 0 do
    a, b = fmod(b, a), a
  end
  -- A new bucket that follows a server or recharges is not begun here. Stored terms of others must be sound.
  if is_new and not queues or quota ~= terms and (
      not (whole(c, 1, LIMIT - 1) and whole(r, 0, LIMIT) and whole(p, 1, LIMIT) and whole(overdraft, 0, LIMIT))
      or not (target == '-' or whole(target, 1, LIMIT - 1))
      or not (initial == '-' or whole(initial, 1 - LIMIT, capacity))
      or others == ' 0 0 - - 0' or refill / b * (period / b + 1) >= LIMIT) then
    what = 'all' break
  end
  if not stepped then
    refill, period = refill / b, refill > 0 and period / b or SECOND
  end

  if is_new then
    version, balance, refilled_at = '0', initial == '-' and c or initial, format('%d', now)
  end
  local all = version .. ' ' .. balance .. ' ' .. refilled_at .. ' ' .. (carry or '0')
  local raised = tonumber(version)
  balance, refilled_at, carry = tonumber(balance), tonumber(refilled_at), tonumber(carry or 0)
  if not (raised and balance and refilled_at and carry
      and raised >= 0 and raised < LIMIT - 1 and balance > -LIMIT and balance < LIMIT and carry >= 0
      and refilled_at >= 0 and refilled_at <= now + 5 * SECOND and now - refilled_at <= 365 * DAY_US)
      -- Each as `whole` reads it, all at once.
      or format('%d %d %d %d', raised, balance, refilled_at, carry) ~= all then
    what = 'all' break
  end
  local kept = (synced or due_at or open) and call('PTTL', key)
  if more or synced then
    local missing = not synced and 0 or nil
    due_at = whole(due_at, now + 1, now + 2 * DAY_US + 5 * SECOND, LIMIT)
    last_place, largest_place = whole(last_place, 0, LIMIT - 1, 0), whole(largest_place, 0, LIMIT - 1, 0)
    firm_place = whole(firm_place, 0, LIMIT - 1, 0)
    held, open = whole(held, 0, LIMIT - 1, missing), whole(open, 0, LIMIT - 2, missing)
    sequence = whole(sequence, 0, LIMIT / 2 - 1, missing)
    if not (due_at and last_place and firm_place and largest_place and held and open and sequence)
        or open > 0 and due_at == LIMIT or open == 0 and held > 0 then
      what = 'all' break
    end
    if closed_until or paused_until or wide_capacity or line or free then what = 'some' break end
  else
    due_at, last_place, firm_place, largest_place, held, open, sequence = LIMIT, 0, 0, 0, 0, 0, 0
  end
  if quota ~= terms then
    -- The stored terms serve others' callers for a minute after they replaced others.
    terms_at = whole(terms_at, 0, now + 5 * SECOND)
    local synced_too = match(terms, '^%S+ %S+ %S+ .+ 1$') ~= nil
    if not terms_at or now - terms_at >= 60 * SECOND or synced_too ~= synced then what = 'some' break end
  end
  if not queues then
    local until_us, most, rate, per, left_over = match(fast or '', '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    capacity, refill, period = whole(most, 1, LIMIT - 1), whole(rate, 0, LIMIT), whole(per, 1, LIMIT - 1)
    kept_back = whole(left_over, 0, LIMIT - 1)
    if not (whole(until_us, now + 1, now + 60 * SECOND) and capacity and refill and period and kept_back)
        or refill * (period + 1) >= LIMIT then
      what = 'all' break
    end
    kept_back = min(kept_back, (divmod(capacity, 3)))
  end
  if carry >= period or more
      and last_place > instant(capacity - min(0, balance), now, refill, period, stepped) + period + 5 * SECOND then
    what = 'all' break
  end

  -- The balance flows to now.
  local old_carry = carry
  if now > refilled_at then
    local periods, elapsed = divmod(now - refilled_at, period)
    local gain = periods * refill
    if refill == 0 then elapsed, carry = 0, 0 end
    if stepped then
      refilled_at = now - elapsed
    else
      refilled_at, periods, carry = now, divmod(elapsed * refill + carry, period)
      gain = gain + periods
    end
    if gain >= capacity - balance then
      balance, carry = max(balance, capacity), 0
    else
      balance = balance + gain
    end
  end
  if stepped then carry = 0 end

  -- The verbs. Many acquires are carried out up to the first that can't be served here. The answer has the balance
  -- after each, and its place.
  local at, back, ends, many, kept_hold, numbers = nil, 0, nil, '', nil, {}
  local now_held, now_open = held, open
  if verb == 'acquire' or verb == 'reserve' then
    local first = verb == 'acquire' and 5 or 6
    repeat
      local tokens, keep = tonumber(ARGV[first]), tonumber(ARGV[first + 1] or 0)
      local alone, place = max(1, tokens - overdraft), now
      local need = synced and held > 0 and tokens or alone
      if not queues then
        keep = max(keep, min(keep + kept_back, divmod(capacity, 3), capacity - alone))
      end
      need = need + keep
      local is_served = tokens > 0 and held + tokens < LIMIT
      if is_served and balance - (synced and held or 0) < need then
        place = max(now, instant(need - balance, refilled_at, refill, period, stepped, carry))
        is_served = verb == 'acquire' and queues and need <= capacity and place < LIMIT
        if is_served and not ARGV[6] and not is_new then
          -- A caller that just wants tokens now is refused here: nothing has changed but the time.
          return format('%s %.0f %d %d %d %d', nonce, now, balance, place - now, held, open)
        end
        -- The rules decide on a place at the last one's instant, or behind places before which tokens came back.
        is_served = is_served and keep == 0 and firm_place <= now and place ~= last_place and ARGV[first + 2]
          and place - now <= tonumber(ARGV[first + 2])
        if is_served then
          largest_place = last_place > now and max(tokens, largest_place) or tokens
          last_place = max(last_place, place)
          numbers = {'last_place', last_place, 'largest_place', largest_place}
        end
      end
      if not is_served then
        if not at then what = 'some' end
        break
      end
      at = place
      if verb == 'acquire' or not synced then
        balance = max(1 - LIMIT, balance - tokens)
      end
      if verb == 'acquire' and ARGV[8] then
        many = many .. format(' %d %d', balance, at - now)
      end
      first = first + 3
    until verb == 'reserve' or not ARGV[first]
    if verb == 'reserve' then
      local tokens, life = ARGV[6], ARGV[8]
      ends = now + life
      if hold or ends >= LIMIT then what = 'some' end
      now_held, now_open = held + tokens, open + 1
      numbers = {'held', now_held, 'open', now_open, 'sequence', sequence + 1, 'due_at', min(due_at, ends)}
      kept_hold = format('%s %d %d %s 0%s', tokens, sequence + 1, ends, life, ARGV[9])
    end
  elseif verb == 'settle' then
    local tokens, opened, expires, life, label = match(hold or '', '^(%d+) (%d+) (%d+) (%d+) 0(.*)$')
    tokens, life = whole(tokens, 0, held), whole(life, 1, DAY_US)
    if not (tokens and life and whole(opened, 0, sequence) and whole(expires, now + 1, now + life + 5 * SECOND))
        or open == 0 or not (label == '' or match(label, '^ ')) then
      what = 'some' break
    end
    local cost = tonumber(ARGV[6]) or tokens
    now_held, now_open, kept_hold = held - tokens, open - 1, ''
    numbers = {'held', now_held, 'open', now_open}
    balance = max(1 - LIMIT, balance - (synced and cost or max(0, cost - tokens)))
    back = not synced and tokens - cost or 0
  elseif verb == 'refund' and not hold then
    ends, back = now + REMEMBERED_US, tonumber(ARGV[6])
    numbers = {'sequence', sequence + 1, 'due_at', min(due_at, ends)}
    kept_hold = format('0 %d %d %d %d', sequence + 1, now, REMEMBERED_US, sequence + 1)
  else
    what = 'some'
  end
  if back > 0 then
    -- The rules decide what comes back while places lie ahead.
    if last_place > now and not synced then what = 'some' end
    balance = min(max(balance, capacity), balance + back)
    if balance >= capacity and not stepped then carry = 0 end
  end
  if what then break end
  at = at or now

  -- The lifetime is that of `lifetime_us`, but never shorter than it was: holds that were not read here may need it.
  if given == '' and starts_full and not (synced and kept == -1) then
    local full_at = (synced or refill == 0) and now + DAY_US - 10 * SECOND
      or instant(capacity - balance, refilled_at, refill, period, stepped)
    if full_at < LIMIT then
      full_at = max(full_at, ends or now) - now
      lifetime = format('%d', max(60000, math.ceil(full_at / 1000) + 10000, kept or 60000))
    end
  end

  local now_text, balance_text = format('%d', now), format('%d', balance)
  sets = {'version', format('%d', raised + 1), 'balance', balance_text, 'refilled_at', now_text}
  gone, grows = {}, kept_hold and kept_hold ~= ''
  answer = nonce .. ' ' .. now_text .. ' ' .. balance_text
  if refilled_at ~= now then sets[6] = format('%d', refilled_at) end
  if carry ~= old_carry then sets[7], sets[8] = 'carry', format('%d', carry) end
  if is_new then sets[#sets + 1], sets[#sets + 2] = 'quota', terms end
  for place = 1, #numbers, 2 do
    local name, number = numbers[place], numbers[place + 1]
    if number == 0 and not synced then
      gone[#gone + 1] = name
    else
      sets[#sets + 1], sets[#sets + 2] = name, format('%d', number)
    end
  end
  if kept_hold == '' then
    gone[#gone + 1] = 'hold:' .. id
  elseif kept_hold then
    sets[#sets + 1], sets[#sets + 2] = 'hold:' .. id, kept_hold
  end
  if at > now or now_held > 0 or now_open > 0 or kept_back > 0 or many ~= '' then
    answer = format('%s %d %d %d %d%s', answer, at - now, now_held, now_open, kept_back, many)
  end
until true

if what then
  local told = (what == 'all' or not more) and call('HGETALL', key)
  answer = {nonce, format('%.0f', now), told and 'all' or 'some'}
  if not told then
    told = {}
    local names = {'hold:' .. id, FIELDS}  -- all that are no holds: _wire.py puts their names here
    for place, text in ipairs(call('HMGET', key, unpack(names))) do
      if text then told[#told + 1], told[#told + 2] = names[place], text end
    end
  end
  for place, text in ipairs(told) do
    -- Bytes that are no text are escaped: not every client can read them as they are.
    answer[place + 3] = string.gsub(text, '[^ -$&-~]', function(byte) return format('%%%02X', string.byte(byte)) end)
  end
  return answer
end

-- The first write leaves nothing behind: it shows whether the server is full or a right is missing.

if is_new then
  call('HSET', key, unpack(sets))
  local wrong = lifetime and redis.pcall('PEXPIRE', key, lifetime)
  if type(wrong) ~= 'table' then return answer end
  for place = 1, #sets, 2 do
    call('HDEL', key, sets[place])
  end
  return wrong
end
if grows then call('HSET', key, 'version', version or '0') end
if lifetime then
  call('PEXPIRE', key, lifetime)
else
  call('PERSIST', key)
end
if gone[1] then call('HDEL', key, nonce) end
for place = 1, #sets, 900 do
  call('HSET', key, unpack(sets, place, min(#sets, place + 899)))
end
for place = 1, #gone, 900 do
  call('HDEL', key, unpack(gone, place, min(#gone, place + 899)))
end
return answer
