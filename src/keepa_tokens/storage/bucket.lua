-- The rules of transition.py in Lua: same names, same order, same rule numbers, the same digits.
--
-- One key, one hash, one atomic step. Tokens and microseconds are whole numbers; Lua's doubles hold them exactly,
-- because everything that is kept stays within 2^52 and every product below 2^53: divide first, multiply the rest.
--
-- KEYS[1]: the bucket. ARGV: 1 the command, 2 the caller's time ('': the server's), 3 to 12 the quota, 13 and on
-- the command's own arguments; '' stands for None. The answer is a flat list of plain texts; _wire.py knows both.

-- units.py

local LIMIT = 4503599627370496
local NEVER = LIMIT
local MICROSECONDS = 1000000
local TOLERANCE_US = 5 * MICROSECONDS
local MAX_HOLD_US = 86400 * MICROSECONDS
local CLAIM_US = 20 * MICROSECONDS
local MAX_BACKOFF_US = 3600 * MICROSECONDS
local REORDER_US = 120 * MICROSECONDS
local REFUND_MEMORY_US = 600 * MICROSECONDS

local min, max, floor, fmod = math.min, math.max, math.floor, math.fmod

-- Python's divmod for whole numbers, b > 0: rounds down, below zero too. fmod is exact, so a - rest is a multiple of b
-- and its division exact; floor(a / b) alone is one too many when a / b rounds up to a whole number.
local function divmod(a, b)
  local rest = fmod(a, b)
  local quotient = (a - rest) / b
  if rest < 0 then
    return quotient - 1, rest + b
  end
  return quotient, rest
end

local function div(a, b)
  local quotient = divmod(a, b)
  return quotient
end

-- '%.0f': tostring() writes large numbers with an exponent. + 0 turns -0, which some divisions leave, into 0.
local function written(number)
  return string.format('%.0f', number + 0)
end

-- Order of texts by their bytes: Lua's own `<` follows the server's locale.
local function before(a, b)
  for i = 1, min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

-- arithmetic.py

local function saturated(tokens)
  return max(1 - LIMIT, min(LIMIT - 1, tokens))
end

local function refill_smooth(balance, refilled_at, carry, now, capacity, rate, period)
  if now <= refilled_at then
    return balance, refilled_at, carry
  end
  if balance >= capacity or rate == 0 then
    return balance, now, 0
  end
  local room = capacity - balance
  local periods, rest = divmod(now - refilled_at, period)
  if periods >= div(room, rate) + 1 then
    return capacity, now, 0
  end
  local whole_tokens, remainder = divmod(rest * rate + carry, period)
  local gain = periods * rate + whole_tokens
  if gain >= room then
    return capacity, now, 0
  end
  return balance + gain, now, remainder
end

local function refill_stepped(balance, refilled_at, now, capacity, refill, period)
  if now <= refilled_at then
    return balance, refilled_at
  end
  if refill == 0 then
    return balance, now
  end
  local periods = div(now - refilled_at, period)
  local moved = refilled_at + periods * period
  if balance >= capacity then
    return balance, moved
  end
  local room = capacity - balance
  if periods >= div(room, refill) + 1 then
    return capacity, moved
  end
  return min(capacity, balance + periods * refill), moved
end

local function instant_smooth(need, refilled_at, carry, rate, period)
  if need <= 0 then
    return refilled_at
  end
  if rate == 0 then
    return NEVER
  end
  local periods, rest = divmod(need, rate)
  if periods > div(NEVER - refilled_at, period) then
    return NEVER
  end
  return min(NEVER, refilled_at + periods * period - div(carry - rest * period, rate))
end

local function instant_stepped(need, refilled_at, refill, period)
  if need <= 0 then
    return refilled_at
  end
  if refill == 0 then
    return NEVER
  end
  local steps = div(need - 1, refill) + 1
  if steps > div(NEVER - refilled_at, period) then
    return NEVER
  end
  return refilled_at + steps * period
end

local function required(tokens, overdraft)
  return max(1, tokens - overdraft)
end

local function carried_over(carry, old_rate, old_period, rate, period)
  if old_rate == rate and old_period == period then
    return carry
  end
  if old_rate == 0 or rate == 0 then
    return 0
  end
  local time = div(carry, old_rate)
  if time > div(period - 1, rate) then
    return period - 1
  end
  return time * rate
end

local function halved(tokens, since, now, half_life)
  local halvings = div(max(0, now - since), half_life)
  return floor(tokens / 2 ^ min(halvings, 52)), since + halvings * half_life
end

local function anchored(refilled_at, now, tolerance)
  if refilled_at > now + tolerance then
    return now
  end
  return refilled_at
end

local function phased(now, period, next_refill_in)
  return max(0, now - (period - max(0, min(period, next_refill_in))))
end

-- flow.py

local Flow = {}

function Flow:refilled(balance, refilled_at, carry, now)
  if self.stepped then
    local moved
    balance, moved = refill_stepped(balance, refilled_at, now, self.capacity, self.refill, self.period_us)
    return balance, moved, 0
  end
  return refill_smooth(balance, refilled_at, carry, now, self.capacity, self.refill, self.period_us)
end

function Flow:instant(need, refilled_at, carry)
  if self.stepped then
    return instant_stepped(need, refilled_at, self.refill, self.period_us)
  end
  return instant_smooth(need, refilled_at, carry, self.refill, self.period_us)
end

local function same_flow(a, b)
  return a.capacity == b.capacity and a.refill == b.refill and a.period_us == b.period_us and a.stepped == b.stepped
end

local function flow_in_effect(quota, state)
  local refill, period_us = quota.rate, quota.rate_period_us
  if quota.stepped then
    refill, period_us = quota.refill, quota.period_us
  end
  local capacity = quota.capacity
  if quota.synced then
    if state.reported_refill and state.reported_period_us then
      refill, period_us = state.reported_refill, state.reported_period_us
    end
    capacity = state.reported_capacity or capacity
  end
  return {
    capacity = capacity, refill = refill, period_us = period_us, stepped = quota.stepped,
    refilled = Flow.refilled, instant = Flow.instant,
  }
end

-- state.py: reading and writing the hash

local FORMAT = 1
local NEWEST_FORMAT = 999
local HOLD = 'hold:'
local NUMBERS = {
  'format', 'balance', 'refilled_at', 'carry', 'carry_refill', 'carry_period_us', 'closed_until', 'sequence',
  'reading_at', 'reading_sequence', 'server_time', 'drift', 'kept_back', 'kept_back_at', 'probe_until',
  'probe_failures', 'reported_refill', 'reported_period_us', 'reported_capacity',
}
local QUOTA = { 'capacity', 'refill', 'period_us', 'stepped', 'overdraft', 'recharge_to', 'initial', 'synced' }

local function whole(text)
  local digits = string.match(text, '^%-?([0-9]+)$')
  if not digits or #digits > 16 or (#digits > 1 and string.sub(digits, 1, 1) == '0') then
    return nil
  end
  local value = tonumber(text) + 0
  if value < -LIMIT or value > LIMIT then
    return nil
  end
  return value
end

local function hold_from(text)
  local numbers = {}
  for part in string.gmatch(text .. ' ', '([^ ]*) ') do
    local number = whole(part)
    if not number or #numbers == 5 then
      return nil
    end
    numbers[#numbers + 1] = number
  end
  if #numbers ~= 5 then
    return nil
  end
  return {
    tokens = numbers[1], opened = numbers[2], expires_at = numbers[3], hold_for = numbers[4], charged = numbers[5],
  }
end

local function hold_text(hold)
  return written(hold.tokens) .. ' ' .. written(hold.opened) .. ' ' .. written(hold.expires_at) .. ' '
    .. written(hold.hold_for) .. ' ' .. written(hold.charged)
end

local function quota_texts(quota)
  return {
    capacity = written(quota.capacity),
    refill = written(quota.refill),
    period_us = written(quota.period_us),
    stepped = quota.stepped and '1' or '0',
    overdraft = written(quota.overdraft),
    recharge_to = quota.recharge_to and written(quota.recharge_to),
    initial = quota.initial and written(quota.initial),
    synced = quota.synced and '1' or '0',
  }
end

local function gcd(a, b)
  while b > 0 do
    a, b = b, fmod(a, b)
  end
  return a
end

-- Whether the stored quota is one: it is never obeyed, but damage to it is named. As Quota.__post_init__ checks it.
local function is_quota(texts)
  local values = {}
  for _, name in ipairs(QUOTA) do
    values[name] = texts[name] and whole(texts[name])
  end
  local capacity, refill, overdraft = values.capacity, values.refill, values.overdraft
  if not (capacity and refill and values.period_us and overdraft) then
    return false
  end
  if not (values.stepped == 0 or values.stepped == 1) or not (values.synced == 0 or values.synced == 1) then
    return false
  end
  if capacity < 1 or capacity >= LIMIT or refill < 0 or refill >= LIMIT or overdraft < 0 then
    return false
  end
  local recharge_to, initial = values.recharge_to, values.initial
  if recharge_to and (recharge_to < 1 or recharge_to >= LIMIT) then
    return false
  end
  if initial and (initial <= -LIMIT or initial > capacity) then
    return false
  end
  -- Through seconds and back, rounded half to even, as Python's Quota takes it.
  local period_us = values.period_us / MICROSECONDS * MICROSECONDS
  if period_us < 0.5 or period_us >= LIMIT then
    return false
  end
  local below = floor(period_us)
  local rest = period_us - below
  if rest > 0.5 or (rest == 0.5 and fmod(below, 2) == 1) then
    below = below + 1
  end
  period_us = below
  if period_us < 1 then
    return false
  end
  if refill == 0 then
    return true
  end
  local divisor = gcd(refill, period_us)
  return refill / divisor * (period_us / divisor + 1) < LIMIT
end

-- Return what is stored, unread texts included; nil if there is nothing.
local function from_fields(flat)
  if #flat == 0 then
    return nil
  end
  local stored = { texts = {}, holds = {}, order = {}, unreadable = {} }
  local texts, damaged = stored.texts, stored.unreadable
  for i = 1, #flat, 2 do
    local name, text = flat[i], flat[i + 1]
    texts[name] = text
    if string.sub(name, 1, #HOLD) == HOLD then
      local hold = hold_from(text)
      if hold then
        local id = string.sub(name, #HOLD + 1)
        stored.holds[id] = hold
        stored.order[#stored.order + 1] = id
      else
        damaged[#damaged + 1] = name
      end
    end
  end
  for _, name in ipairs(NUMBERS) do
    if texts[name] then
      stored[name] = whole(texts[name])
      if not stored[name] then
        damaged[#damaged + 1] = name
      end
    end
  end
  local any = false
  for _, name in ipairs(QUOTA) do
    any = any or texts[name] ~= nil
  end
  if any and not is_quota(texts) then
    damaged[#damaged + 1] = 'quota'
  end
  table.sort(damaged, before)
  -- A large hash comes in no order; what is mended is named in this one.
  table.sort(stored.order, before)
  return stored
end

local function to_fields(state, quota)
  local texts = quota_texts(quota)
  for _, name in ipairs(NUMBERS) do
    texts[name] = state[name] and written(state[name])
  end
  for id, hold in pairs(state.holds) do
    texts[HOLD .. id] = hold_text(hold)
  end
  return texts
end

-- 1: repair.py

local MAX_SEQUENCE = LIMIT / 2
local MAX_FAILURES = 30

local function is_whole(value, least, most)
  return value ~= nil and least <= value and value <= (most or LIMIT - 1)
end

local function is_hold(hold)
  return is_whole(hold.tokens, 0)
    and is_whole(hold.opened, 0)
    and is_whole(hold.expires_at, 0)
    and is_whole(hold.hold_for, 1, MAX_HOLD_US)
    and is_whole(hold.charged, 0)
end

local function latest_end(hold, start)
  return start + hold.hold_for + TOLERANCE_US
end

local Mender = {}

function Mender:note(name)
  if not self.noted[name] then
    self.noted[name] = true
    self.names[#self.names + 1] = name
  end
end

function Mender:optional(name, least, most)
  local value = self.stored[name]
  if value == nil or is_whole(value, least or 0, most) then
    return value
  end
  self:note(name)
  return nil
end

function Mender:number(name)
  local value = self:optional(name)
  if value == nil then
    self:note(name)
  end
  return value or 0
end

function Mender:check_format()
  if self.stored.format ~= FORMAT then
    self:note('format')
  end
end

function Mender:balance(quota, reading_at)
  local value = self:optional('balance', 1 - LIMIT)
  if value == nil and (reading_at ~= nil or not quota.synced) then
    self:note('balance')
  end
  return value
end

function Mender:refilled_at()
  local value = self:optional('refilled_at')
  if value == nil then
    self:note('refilled_at')
    return self.now
  end
  local kept = anchored(value, self.now, TOLERANCE_US)
  if kept ~= value then
    self:note('refilled_at')
  end
  return kept
end

function Mender:past(name)
  local value = self:optional(name)
  if value ~= nil and value > self.now + TOLERANCE_US then
    self:note(name)
    return nil
  end
  return value
end

function Mender:probe_until()
  local value = self:optional('probe_until')
  if value ~= nil and value > self.now + CLAIM_US + TOLERANCE_US then
    self:note('probe_until')
    return self.now + CLAIM_US
  end
  return value
end

function Mender:sequence()
  local value = self.stored.sequence
  if is_whole(value, 0, MAX_SEQUENCE) then
    return value
  end
  self:note('sequence')
  local latest = 0
  local function saw(number)
    if is_whole(number, 0, MAX_SEQUENCE) then
      latest = max(latest, number)
    end
  end
  saw(self.stored.reading_sequence or 0)
  for _, hold in pairs(self.stored.holds) do
    if is_hold(hold) then
      saw(max(hold.opened, hold.charged))
    end
  end
  return latest
end

function Mender:reading_sequence(reading_at, sequence)
  local value = self:optional('reading_sequence')
  if value == nil and reading_at == nil then
    return 0
  end
  if value == nil or value > sequence then
    self:note('reading_sequence')
    return sequence
  end
  return value
end

function Mender:reported_rate(quota, reading_at)
  local refill, period_us = self:optional('reported_refill'), self:optional('reported_period_us', 1)
  if refill == nil and period_us == nil then
    return nil, nil
  end
  if refill == nil or period_us == nil or refill * (period_us + 1) >= LIMIT then
    self:note('reported_refill')
    return nil, nil
  end
  if refill == 0 and quota.synced and reading_at == nil then
    self:note('reported_refill')
    return nil, nil
  end
  return refill, period_us
end

function Mender:holds(sequence)
  local sound = {}
  local held = 0
  for _, id in ipairs(self.stored.order) do
    local hold = self.stored.holds[id]
    local known = is_hold(hold)
    local tokens = known and hold.charged == 0 and hold.tokens or 0
    if not known or held + tokens >= LIMIT then
      self:note(HOLD .. id)
      known = false
    else
      held = held + tokens
    end
    if known and max(hold.opened, hold.charged) > sequence then
      self:note(HOLD .. id)
      hold.opened = min(hold.opened, sequence)
      hold.charged = min(hold.charged, max(1, sequence))
    end
    if known then
      sound[id] = hold
    end
  end
  return sound
end

local function within_its_period(quota, state, mender)
  local flow = flow_in_effect(quota, state)
  if state.carry_refill == nil or state.carry_period_us == nil then
    state.carry_refill, state.carry_period_us = flow.refill, flow.period_us
  end
  if state.carry < state.carry_period_us then
    return
  end
  mender:note('carry')
  state.carry = 0
end

local function with_holds_that_end(quota, state, now, mender)
  local any = false
  for _, hold in pairs(state.holds) do
    any = any or hold.expires_at > latest_end(hold, now)
  end
  if not any then
    return
  end
  local place = now
  if not quota.synced then
    local flow = flow_in_effect(quota, state)
    local held = 0
    for _, hold in pairs(state.holds) do
      if hold.charged == 0 then
        held = held + hold.tokens
      end
    end
    local debt = saturated(flow.capacity - (state.balance or 0) + held)
    local instant = flow:instant(debt, state.refilled_at, state.carry)
    if instant ~= NEVER then
      place = max(now, instant)
    end
  end
  for _, id in ipairs(mender.stored.order) do
    local hold = state.holds[id]
    if hold then
      local latest = latest_end(hold, hold.charged == 0 and place or now)
      if hold.expires_at > latest then
        mender:note(HOLD .. id)
        hold.expires_at = latest
      end
    end
  end
end

local function starts_at(quota)
  if quota.initial == nil and not quota.synced then
    return quota.capacity
  end
  return quota.initial
end

local function new_state(quota, now)
  return {
    balance = starts_at(quota), refilled_at = now, carry = 0, sequence = 0, probe_failures = 0, holds = {},
  }
end

local function repair(quota, stored, now)
  if stored == nil then
    return new_state(quota, now), {}
  end
  local mender = setmetatable({ stored = stored, now = now, names = {}, noted = {} }, { __index = Mender })
  for _, name in ipairs(stored.unreadable) do
    mender:note(name)
  end
  mender:check_format()
  local reading_at = mender:past('reading_at')
  local balance = mender:balance(quota, reading_at)
  if balance == nil then
    reading_at = nil
  end
  local lost = balance == nil and not quota.synced
  local state = { reading_at = reading_at }
  state.reported_refill, state.reported_period_us = mender:reported_rate(quota, reading_at)
  state.sequence = mender:sequence()
  if lost then
    state.balance, state.refilled_at, state.carry = 0, now, 0
  else
    state.balance = balance
    state.refilled_at = mender:refilled_at()
    state.carry = mender:number('carry')
  end
  state.carry_refill = mender:optional('carry_refill')
  state.carry_period_us = mender:optional('carry_period_us', 1)
  state.closed_until = mender:optional('closed_until')
  state.reading_sequence = mender:reading_sequence(reading_at, state.sequence)
  state.server_time = mender:optional('server_time')
  state.drift = mender:optional('drift', 1 - LIMIT)
  state.kept_back = mender:optional('kept_back')
  state.kept_back_at = mender:past('kept_back_at')
  state.probe_until = mender:probe_until()
  state.probe_failures = min(MAX_FAILURES, mender:number('probe_failures'))
  state.reported_capacity = mender:optional('reported_capacity', 1)
  state.holds = mender:holds(state.sequence)
  within_its_period(quota, state, mender)
  with_holds_that_end(quota, state, now, mender)
  return state, mender.names
end

-- transition.py

local KEPT_SHARE = 3
local HALF_LIFE_US = 3600 * MICROSECONDS
local LIFETIME_MARGIN_US = 10 * MICROSECONDS
local SHORTEST_LIFETIME_US = 60 * MICROSECONDS
local LIFETIME_AT_REFILL_0_US = 86400 * MICROSECONDS

-- 9: lifetime. nil: for ever
local function lifetime_us(quota, state, now)
  if quota.initial ~= nil and quota.initial < quota.capacity then
    return nil
  end
  local flow = flow_in_effect(quota, state)
  if flow.refill == 0 then
    return LIFETIME_AT_REFILL_0_US
  end
  local balance, start, held, last = state.balance, state.refilled_at, 0, 0
  if balance == nil then
    -- A new one would be no different, unless somebody asks: if that fails, the balance starts at 0.
    balance = state.probe_until == nil and flow.capacity or 0
    start = max(start, state.probe_until or 0)
  end
  for _, hold in pairs(state.holds) do
    if hold.charged == 0 then
      start = max(start, hold.expires_at)
      held = held + hold.tokens
    end
    last = max(last, hold.expires_at + hold.hold_for)
  end
  local full_at = flow:instant(flow.capacity - balance + held, start, 0)
  if full_at == NEVER then
    return nil
  end
  return max(SHORTEST_LIFETIME_US, max(full_at, last, state.probe_until or 0) - now + LIFETIME_MARGIN_US)
end

-- An instant as the time until it.
local function time_until(at, now)
  if at >= NEVER then
    return NEVER
  end
  return at - now
end

-- One step of one bucket: a sound state, worked on in place. Its fields are those of the state.
local Step = {}

local function new_step(quota, sound, now, repaired)
  local step = setmetatable(sound, { __index = Step })
  step.quota, step.now, step.repaired = quota, now, repaired
  step.flow = flow_in_effect(quota, sound)
  step.carry = carried_over(
    sound.carry, sound.carry_refill or 0, sound.carry_period_us or 1, step.flow.refill, step.flow.period_us
  )
  local held = 0
  for _, hold in pairs(step.holds) do
    if hold.charged == 0 then
      held = held + hold.tokens
    end
  end
  step.held = held
  step.reading_sequence = sound.reading_sequence or 0
  step.kept_back = sound.kept_back or 0
  return step
end

function Step:state()
  return {
    format = FORMAT,
    balance = self.balance,
    refilled_at = self.refilled_at,
    carry = self.carry,
    carry_refill = self.flow.refill,
    carry_period_us = self.flow.period_us,
    closed_until = self.closed_until,
    sequence = self.sequence,
    holds = self.holds,
    reading_at = self.reading_at,
    reading_sequence = self.reading_sequence,
    server_time = self.server_time,
    drift = self.drift,
    kept_back = self.kept_back > 0 and self.kept_back or nil,
    kept_back_at = self.kept_back_at,
    probe_until = self.probe_until,
    probe_failures = self.probe_failures,
    reported_refill = self.reported_refill,
    reported_period_us = self.reported_period_us,
    reported_capacity = self.reported_capacity,
  }
end

-- 2 and 3: time passes

function Step:advance()
  for _, item in ipairs(self:in_flight()) do
    if item.hold.expires_at > self.now then
      break
    end
    self:flow_to(item.hold.expires_at)
    self:charge(item.id, item.hold)
  end
  self:flow_to(self.now)
  local forgotten = {}
  for id, hold in pairs(self.holds) do
    if hold.charged ~= 0 and hold.expires_at + hold.hold_for <= self.now then
      forgotten[#forgotten + 1] = id
    end
  end
  for _, id in ipairs(forgotten) do
    self.holds[id] = nil
  end
  self:reopen()
end

function Step:in_flight()
  local items = {}
  for id, hold in pairs(self.holds) do
    if hold.charged == 0 then
      items[#items + 1] = { id = id, hold = hold }
    end
  end
  table.sort(items, function(a, b)
    if a.hold.expires_at ~= b.hold.expires_at then
      return a.hold.expires_at < b.hold.expires_at
    end
    if a.hold.opened ~= b.hold.opened then
      return a.hold.opened < b.hold.opened
    end
    return before(a.id, b.id)
  end)
  return items
end

function Step:flow_to(at)
  if self.balance == nil and self.probe_until ~= nil and at >= self.probe_until then
    -- 8: the probe of an unknown balance failed. Start at 0: slow, never stuck.
    self.balance, self.carry = 0, 0
    self.refilled_at = max(self.refilled_at, self.probe_until)
  end
  if self.balance == nil then
    self.refilled_at, self.carry = max(self.refilled_at, at), 0
    return
  end
  self.balance, self.refilled_at, self.carry = self.flow:refilled(self.balance, self.refilled_at, self.carry, at)
end

function Step:charge(id, hold)
  self.sequence = self.sequence + 1
  self.held = self.held - hold.tokens
  local charged = hold.tokens
  if self.balance == nil then
    charged = 0
  else
    self.balance = saturated(self.balance - charged)
  end
  self.holds[id] = {
    tokens = charged, opened = hold.opened, expires_at = hold.expires_at, hold_for = hold.hold_for,
    charged = self.sequence,
  }
end

-- 4: admission

function Step:judge(tokens, keep)
  if tokens == 0 then
    return 'GRANTED', self.now
  end
  if self.held + tokens >= LIMIT then
    return 'TOO_LARGE', NEVER
  end
  local alone = required(tokens, self.quota.overdraft)
  local beside = self.quota.synced and tokens or alone
  local aside = self:set_aside(keep, self.flow.capacity - alone)
  alone, beside = alone + aside, beside + aside
  if self.balance == nil then
    return 'UNKNOWN', self:instant(alone, beside)
  end
  local available = self.balance - self.held
  if available < alone and alone > self.flow.capacity then
    return 'TOO_LARGE', NEVER
  end
  local closed_until = self:closed_for(tokens, keep)
  if closed_until ~= nil then
    return 'RECHARGING', max(closed_until, self:instant(alone, beside))
  end
  if available < (self.held > 0 and beside or alone) then
    return 'EMPTY', self:instant(alone, beside)
  end
  return 'GRANTED', self.now
end

function Step:instant(alone, beside)
  local balance, refilled_at, carry, held = self.balance, self.refilled_at, self.carry, self.held
  local start, items, first = self.now, self:in_flight(), 1
  if balance == nil then
    local failed_at = self.probe_until or self.now + CLAIM_US
    balance, refilled_at, carry = 0, max(refilled_at, failed_at), 0
    while items[first] and items[first].hold.expires_at < failed_at do
      held = held - items[first].hold.tokens
      first = first + 1
    end
  end
  for i = first, #items do
    local hold = items[i].hold
    local at = self:reached(balance, refilled_at, carry, (held > 0 and beside or alone) + held, start)
    if at <= hold.expires_at then
      return at
    end
    start = hold.expires_at
    balance, refilled_at, carry = self.flow:refilled(balance, refilled_at, carry, start)
    balance = saturated(balance - hold.tokens)
    held = held - hold.tokens
  end
  return self:reached(balance, refilled_at, carry, alone, start)
end

function Step:reached(balance, refilled_at, carry, wanted, start)
  if balance >= wanted then
    return start
  end
  if wanted > self.flow.capacity then
    return NEVER
  end
  return max(start, self.flow:instant(wanted - balance, refilled_at, carry))
end

-- 5: recharge

function Step:is_closed()
  return self.quota.recharge_to ~= nil and self.closed_until ~= nil
end

function Step:recharged_at()
  local target = min(self.quota.recharge_to or 0, self.flow.capacity)
  return self:instant(target, target)
end

function Step:closed_for(tokens, keep)
  if self.quota.recharge_to == nil or self.balance == nil then
    return nil
  end
  local lacking = required(tokens, self.quota.overdraft)
  local enough = tokens == 0 or self.balance - self.held >= lacking
  if self.closed_until ~= nil or enough or lacking + keep > self.flow.capacity then
    return self.closed_until
  end
  local at = self:recharged_at()
  if self.now < at and at < NEVER then
    return at
  end
  return nil
end

function Step:close_for(tokens, keep)
  local at = self:closed_for(tokens, keep)
  if at ~= nil then
    self.closed_until = at
  end
end

function Step:reopen()
  if self.closed_until == nil or self.quota.recharge_to == nil then
    return
  end
  if self.balance == nil then
    self.closed_until = nil
    return
  end
  local at = min(self.closed_until, self:recharged_at())
  if self.now < at and self.flow.refill > 0 then
    self.closed_until = at
  else
    self.closed_until = nil
  end
end

-- 6: taking tokens, now or in a place

function Step:acquire(command)
  self:close_for(command.tokens, command.keep)
  local reason, at = self:judge(command.tokens, command.keep)
  if not self:has_place(reason, at, command) then
    return self:refuse(reason, command.tokens, command.keep, command.probe_after_us)
  end
  if self.balance ~= nil then
    self.balance = saturated(self.balance - command.tokens)
  end
  return self:outcome({ granted = true, place_us = at - self.now })
end

function Step:reserve(command)
  local repeated = self.holds[command.id]
  if repeated then
    return self:outcome({ granted = true, place_us = max(0, repeated.expires_at - repeated.hold_for - self.now) })
  end
  self:close_for(command.tokens, command.keep)
  local reason, at = self:judge(command.tokens, command.keep)
  if self:has_place(reason, at, command) then
    self:open(command, at)
    return self:outcome({ granted = true, place_us = at - self.now })
  end
  local refusal = self:refuse(reason, command.tokens, command.keep, command.probe_after_us)
  if not (command.scout and refusal.probe) then
    return refusal
  end
  self:open(command, self.now)
  return self:outcome({ granted = true, probe = true, scout = true })
end

function Step:has_place(reason, at, command)
  if reason == 'GRANTED' then
    return true
  end
  if command.wait_us == nil or command.keep ~= 0 or reason ~= 'EMPTY' then
    return false
  end
  local queues = not self.quota.synced and self.quota.recharge_to == nil
  return queues and at < NEVER and at - self.now <= command.wait_us
end

function Step:open(command, at)
  self.sequence = self.sequence + 1
  self.holds[command.id] = {
    tokens = command.tokens, opened = self.sequence, expires_at = at + command.hold_for_us,
    hold_for = command.hold_for_us, charged = 0,
  }
  self.held = saturated(self.held + command.tokens)
end

function Step:refuse(reason, tokens, keep, probe_after_us)
  local probe = self:probe_at(probe_after_us) <= self.now
  if probe then
    self:claim()
  end
  local _, at = self:judge(tokens, keep)
  return self:outcome({ reason = reason, retry_after_us = time_until(at, self.now), probe = probe })
end

-- 3: ending a hold, giving back

function Step:settle(command)
  local hold = self.holds[command.id]
  self.holds[command.id] = nil
  if hold == nil then
    local verdict, drift = self:observe(command.reading)
    return self:outcome({ found = false, reading = verdict, drift = drift })
  end
  if hold.charged == 0 then
    self.held = self.held - hold.tokens
  end
  local cost = command.actual or hold.tokens
  local charged = self:charged_before(hold)
  local reading = command.reading
  if reading and self:fresh_by_call(reading, hold.opened) then
    local projected = self.balance and self.balance + charged - cost
    return self:outcome({ reading = 'TAKEN', drift = self:adopt(reading, projected) })
  end
  if reading and self:is_older(reading) then
    cost = 0
  end
  if self.balance ~= nil then
    self:correct(charged - cost)
    if command.refused and hold.opened > self.reading_sequence then
      self.balance = min(self.balance, 0)
    end
  end
  self:reopen()
  return self:outcome({ reading = reading and 'STALE' or 'NONE' })
end

function Step:cancel(command)
  local hold = self.holds[command.id]
  self.holds[command.id] = nil
  if hold == nil then
    return self:outcome({ found = false })
  end
  if hold.charged == 0 then
    self.held = self.held - hold.tokens
  else
    self:correct(self:charged_before(hold))
  end
  self:reopen()
  return self:outcome({})
end

function Step:charged_before(hold)
  if hold.charged ~= 0 and hold.charged > self.reading_sequence then
    return hold.tokens
  end
  return 0
end

function Step:refund(command)
  local age = self.now - command.issued_us
  if self.holds[command.id] or not (-TOLERANCE_US <= age and age < REFUND_MEMORY_US - 2 * TOLERANCE_US) then
    return self:outcome({ found = false })
  end
  self.sequence = self.sequence + 1
  self.holds[command.id] = {
    tokens = 0, opened = self.sequence, expires_at = self.now, hold_for = REFUND_MEMORY_US, charged = self.sequence,
  }
  self:correct(command.tokens)
  self:reopen()
  return self:outcome({})
end

function Step:correct(by)
  if self.balance ~= nil then
    local most = max(self.balance, self.flow.capacity)
    self.balance = saturated(min(most, self.balance + by))
  end
end

-- 7: readings

function Step:reconcile(command)
  local verdict, drift = self:observe(command.reading)
  return self:outcome({ reading = verdict, drift = drift, snapshot = self:snapshot(command) })
end

function Step:observe(reading)
  if reading == nil then
    return 'NONE', nil
  end
  if not self:fresh_by_itself(reading) then
    return 'STALE', nil
  end
  return 'TAKEN', self:adopt(reading, self.balance)
end

function Step:nothing_known()
  return self.balance == nil or self.reading_at == nil
end

function Step:fresh_by_call(reading, opened)
  if not self.quota.synced then
    return false
  end
  return self:nothing_known() or opened > self.reading_sequence or self:is_newer(reading)
end

function Step:fresh_by_itself(reading)
  if not self.quota.synced then
    return false
  end
  if self:nothing_known() or self:is_newer(reading) then
    return true
  end
  if self.server_time == nil then
    return true
  end
  return self.now - (self.reading_at or 0) > REORDER_US
end

function Step:is_newer(reading)
  local told = reading.server_time_us
  if told == nil or self.server_time == nil then
    return false
  end
  return told > self.server_time or (told == self.server_time and reading.balance < (self.balance or 0))
end

function Step:is_older(reading)
  local told = reading.server_time_us
  return told ~= nil and self.server_time ~= nil and told <= self.server_time
end

function Step:adopt(reading, projected)
  local followed = self.reading_at ~= nil and self.held == 0
  local before_it = self.flow
  self.drift = projected and saturated(reading.balance - projected)
  self.balance = reading.balance
  self.sequence = self.sequence + 1
  self.reading_sequence = self.sequence
  self.reading_at = self.now
  if reading.server_time_us ~= nil then
    self.server_time = reading.server_time_us
  end
  self.probe_until, self.probe_failures = nil, 0
  local period_us = reading.period_us or self.quota.period_us
  self:adopt_flow(reading, period_us)
  self:keep_back(followed and same_flow(self.flow, before_it) and -(self.drift or 0) or 0)
  if self.flow.stepped and reading.next_refill_in_us ~= nil then
    self.refilled_at = phased(self.now, period_us, reading.next_refill_in_us)
  elseif not self.flow.stepped then
    self.refilled_at = max(self.refilled_at, self.now)
  end
  self.carry = 0
  self:reopen()
  return self.drift
end

function Step:adopt_flow(reading, period_us)
  if reading.capacity ~= nil then
    self.reported_capacity = reading.capacity
  end
  local refill
  refill, period_us = reading.refill_tokens, period_us * reading.refill_periods
  if refill ~= nil and refill * (period_us + 1) < LIMIT and period_us < LIMIT then
    self.reported_refill, self.reported_period_us = refill, period_us
  end
  self.flow = flow_in_effect(self.quota, self)
end

-- 8: the probe

function Step:claim_probe()
  local claimed = self.quota.synced and (self.probe_until == nil or self.now >= self.probe_until)
  if claimed then
    self:claim()
  end
  return self:outcome({ probe = claimed })
end

function Step:probe_at(probe_after_us)
  if probe_after_us == nil or not self.quota.synced then
    return NEVER
  end
  local stale_at = self:nothing_known() and self.now or (self.reading_at or 0) + probe_after_us
  if self.probe_until == nil then
    return max(self.now, stale_at)
  end
  -- 2^failures is exact, and so is a number times it: only the exponent grows.
  local backoff = min(probe_after_us * 2 ^ self.probe_failures, max(probe_after_us, MAX_BACKOFF_US))
  return max(self.now, stale_at, self.probe_until + backoff)
end

function Step:claim()
  if self.probe_until ~= nil then
    self.probe_failures = self.probe_failures + 1
  end
  self.probe_until = self.now + CLAIM_US
end

-- 10: others

function Step:set_aside(keep, most)
  local kept = self:kept_for_others()
  if kept == 0 then
    return keep
  end
  return max(keep, min(keep + kept, div(self.flow.capacity, KEPT_SHARE), most))
end

function Step:kept_for_others()
  return self.quota.synced and min(self.kept_back, div(self.flow.capacity, KEPT_SHARE)) or 0
end

function Step:keep_back(gap)
  local since = self.kept_back_at or self.now
  local kept
  kept, since = halved(self:kept_for_others(), since, self.now, HALF_LIFE_US)
  -- Beyond 2^52 the product is rounded, but no gap is as large.
  local under_way = self.flow.refill * (div(TOLERANCE_US, self.flow.period_us) + 1)
  if gap > under_way then
    kept, since = min(kept + gap, div(self.flow.capacity, KEPT_SHARE)), self.now
  end
  self.kept_back, self.kept_back_at = kept, kept > 0 and since or nil
end

-- what is told

function Step:peek(command)
  local reason, at = self:judge(command.tokens, command.keep)
  return self:outcome({
    granted = reason == 'GRANTED',
    reason = reason,
    retry_after_us = time_until(at, self.now),
    snapshot = self:snapshot(command),
  })
end

function Step:granted_by(reason, at)
  if reason == 'GRANTED' or self.quota.recharge_to == nil then
    return at
  end
  local recharged = self:recharged_at()
  if recharged < NEVER then
    return max(at, recharged)
  end
  return at
end

function Step:snapshot(command)
  local reason, at = self:judge(command.tokens, command.keep)
  local bound = min(self:granted_by(reason, at), self:probe_at(command.probe_after_us))
  local full_at = NEVER
  if self.balance ~= nil then
    full_at = self:full_at(self.balance)
  end
  local holds = 0
  for _, hold in pairs(self.holds) do
    if hold.charged == 0 then
      holds = holds + 1
    end
  end
  return {
    held = self.held,
    holds = holds,
    retry_after_us = time_until(at, self.now),
    full_in_us = time_until(full_at, self.now),
    closed_for_us = self:is_closed() and self.closed_until - self.now or 0,
    bound_us = time_until(bound, self.now),
    capacity = self.flow.capacity,
    refill = self.flow.refill,
    period_us = self.flow.period_us,
    reading_age_us = self.reading_at and max(0, self.now - self.reading_at),
    drift = self.drift,
  }
end

function Step:full_at(balance)
  return self:reached(balance, self.refilled_at, self.carry, self.flow.capacity, self.now)
end

function Step:outcome(told)
  told.now_us = self.now
  told.balance = self.balance
  told.granted = told.granted or false
  told.reason = told.reason or 'GRANTED'
  told.retry_after_us = told.retry_after_us or 0
  told.place_us = told.place_us or 0
  told.closed = self:is_closed()
  told.kept_back = self:kept_for_others()
  told.probe = told.probe or false
  told.scout = told.scout or false
  if told.found == nil then
    told.found = true
  end
  told.reading = told.reading or 'NONE'
  return told
end

-- The command, as _wire.py wrote it

local function number_at(i)
  if ARGV[i] == '' then
    return nil
  end
  return tonumber(ARGV[i])
end

local function quota_from_arguments()
  return {
    capacity = number_at(3), refill = number_at(4), period_us = number_at(5), stepped = ARGV[6] == '1',
    overdraft = number_at(7), recharge_to = number_at(8), initial = number_at(9), synced = ARGV[10] == '1',
    rate = number_at(11), rate_period_us = number_at(12),
  }
end

local function reading_from(i)
  if ARGV[i] == '' then
    return nil
  end
  return {
    balance = number_at(i), next_refill_in_us = number_at(i + 1), refill_tokens = number_at(i + 2),
    refill_periods = number_at(i + 3), period_us = number_at(i + 4), capacity = number_at(i + 5),
    server_time_us = number_at(i + 6),
  }
end

local COMMANDS = {
  Acquire = function(step)
    return step:acquire({
      tokens = number_at(13), keep = number_at(14), wait_us = number_at(15), probe_after_us = number_at(16),
    })
  end,
  Reserve = function(step)
    return step:reserve({
      id = ARGV[13], tokens = number_at(14), hold_for_us = number_at(15), keep = number_at(16),
      wait_us = number_at(17), probe_after_us = number_at(18), scout = ARGV[19] == '1',
    })
  end,
  Settle = function(step)
    return step:settle({
      id = ARGV[13], actual = number_at(14), refused = ARGV[15] == '1', reading = reading_from(16),
    })
  end,
  Cancel = function(step)
    return step:cancel({ id = ARGV[13] })
  end,
  Refund = function(step)
    return step:refund({ id = ARGV[13], tokens = number_at(14), issued_us = number_at(15) })
  end,
  Reconcile = function(step)
    -- 13 to 15: the Peek whose snapshot is told.
    return step:reconcile({
      tokens = number_at(13), keep = number_at(14), probe_after_us = number_at(15), reading = reading_from(16),
    })
  end,
  ClaimProbe = function(step)
    return step:claim_probe()
  end,
  Peek = function(step)
    return step:peek({ tokens = number_at(13), keep = number_at(14), probe_after_us = number_at(15) })
  end,
}

-- The answer, as _wire.py reads it: ASCII only, whatever somebody wrote into the hash

local TOLD = {
  'now_us', 'balance', 'granted', 'reason', 'retry_after_us', 'place_us', 'closed', 'kept_back', 'probe', 'scout',
  'found', 'reading', 'drift',
}
local SHOWN = {
  'held', 'holds', 'retry_after_us', 'full_in_us', 'closed_for_us', 'bound_us', 'capacity', 'refill', 'period_us',
  'reading_age_us', 'drift',
}

local function escaped(text)
  return (string.gsub(text, '[^A-Za-z0-9_:-]', function(byte)
    return string.format('%%%02X', string.byte(byte))
  end))
end

local function told_as_text(value)
  if value == nil then
    return ''
  elseif value == true then
    return '1'
  elseif value == false then
    return '0'
  elseif type(value) == 'string' then
    return value
  end
  return written(value)
end

local function answer(outcome, repaired)
  local reply = {}
  for _, name in ipairs(TOLD) do
    reply[#reply + 1] = told_as_text(outcome[name])
  end
  for _, name in ipairs(SHOWN) do
    reply[#reply + 1] = outcome.snapshot and told_as_text(outcome.snapshot[name]) or ''
  end
  for _, name in ipairs(repaired) do
    reply[#reply + 1] = escaped(name)
  end
  return reply
end

-- Writing: what changed, and what is gone. Fields that no release of this format knows are left alone.

local CHUNK = 200 -- names and texts in one call: Lua can't pass an unlimited number of arguments

local function in_chunks(command, list)
  for i = 1, #list, CHUNK do
    redis.call(command, KEYS[1], unpack(list, i, min(i + CHUNK - 1, #list)))
  end
end

local function is_ours(name)
  if string.sub(name, 1, #HOLD) == HOLD then
    return true
  end
  for _, names in ipairs({ NUMBERS, QUOTA }) do
    for _, known in ipairs(names) do
      if name == known then
        return true
      end
    end
  end
  return false
end

local function store(stored, texts)
  local old = stored and stored.texts or {}
  local changed, gone, written_already = {}, {}, {}
  local function write(name, text)
    written_already[name] = true
    if text and old[name] ~= text then
      changed[#changed + 1] = name
      changed[#changed + 1] = text
    end
  end
  -- In this order, so that HGETALL reads well.
  for _, names in ipairs({ NUMBERS, QUOTA }) do
    for _, name in ipairs(names) do
      write(name, texts[name])
    end
  end
  for name, text in pairs(texts) do
    if not written_already[name] then
      write(name, text)
    end
  end
  for name in pairs(old) do
    if texts[name] == nil and is_ours(name) then
      gone[#gone + 1] = name
    end
  end
  -- HSET first: it is the one that a full or read-only server refuses, and then nothing has changed.
  in_chunks('HSET', changed)
  in_chunks('HDEL', gone)
end

local function keep_for(lifetime)
  if lifetime == nil then
    redis.call('PERSIST', KEYS[1])
  else
    local milliseconds, rest = divmod(lifetime, 1000)
    redis.call('PEXPIRE', KEYS[1], written(rest > 0 and milliseconds + 1 or milliseconds))
  end
end

local function refusal_of(flat)
  if string.find(flat.err, 'WRONGTYPE', 1, true) then
    return redis.error_reply('KEEPATOKENS type')
  end
  return flat
end

local function main()
  local now, own_time = number_at(2), false
  if now == nil then
    local time = redis.call('TIME')
    now, own_time = time[1] * MICROSECONDS + time[2], true
  end
  local flat = redis.pcall('HGETALL', KEYS[1])
  if flat.err then
    return refusal_of(flat)
  end
  if ARGV[1] == 'Inspect' then
    local reply = { written(now) }
    for _, text in ipairs(flat) do
      reply[#reply + 1] = escaped(text)
    end
    return reply
  end
  local stored = from_fields(flat)
  -- 1: the format of a newer release is left to those who know it.
  if stored and is_whole(stored.format, FORMAT + 1, NEWEST_FORMAT) then
    return redis.error_reply('KEEPATOKENS format ' .. written(stored.format))
  end
  local quota = quota_from_arguments()
  local sound, repaired = repair(quota, stored, now)
  local step = new_step(quota, sound, now, repaired)
  step:advance()
  local state = step:state()
  local outcome = COMMANDS[ARGV[1]](step)
  local looked = ARGV[1] == 'Peek'
  if not looked then
    state = step:state()
  end
  if not looked or #repaired > 0 then
    store(stored, to_fields(state, quota))
    keep_for(own_time and lifetime_us(quota, state, now) or nil)
  end
  return answer(outcome, repaired)
end

return main()
