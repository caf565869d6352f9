//! Messages on their way out of a queue.

use std::time::Duration;

use async_nats::Message;
use prism_io::clock::wall_us;
use prism_io::rt;
use prism_proto::prism::r#type::v1::Delivery;
use prost::Message as _;

use super::super::Nats;
use super::super::errors;
use super::super::event::expires_at_us;
use super::super::place::{ACKNOWLEDGED, GIVEN_BACK};
use super::dead::Settings;
use super::lanes::Line;
use super::leases::{Lease, Receipt};
use super::message::{Kept, UNORDERED};
use super::settle::later;
use crate::call::Context;
use crate::error::Error;
use crate::interfaces::message::time;
use crate::limits::LEASE_DEFAULT_MS;

/// Bytes of an answer that are kept free beside its deliveries, and what a delivery takes beside what the server counts of it, at most.
const ANSWER_SPARE_BYTES: usize = 256;
const DELIVERY_SPARE_BYTES: usize = 256;

/// How often it is looked again, when what was found was for nobody any more.
const LOOKS_MAX: usize = 16;

/// How long who waits for messages waits before it looks for what came another way.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long before it tries whether somebody else's lease is over.
const TRY_EVERY_US: u64 = 2_000_000;

/// How long after the end of a lease its message is brought back from here; by then the server has done it by itself.
const BROUGHT_BACK_US: u64 = 2_000_000;

/// Why a message becomes a dead letter that nobody has rejected.
pub(super) const MAX_DELIVERIES: &str = "MAX_DELIVERIES";

/// What a Receive has taken so far.
struct Taking {
    wanted: usize,
    lease_us: u64,
    deliveries: Vec<(Lease, Delivery)>,
    room: usize,
    is_full: bool,
    settings: Option<Settings>,
}

impl Nats {
    /// Takes messages under a lease.
    pub(super) async fn take_messages(
        &self,
        context: &Context<'_>,
        queue: &str,
        wanted: usize,
        lease_us: u64,
    ) -> Result<Vec<Delivery>, Error> {
        let mut taking = Taking {
            wanted,
            lease_us,
            deliveries: Vec::new(),
            room: context.limits.max_message_size.saturating_sub(ANSWER_SPARE_BYTES),
            is_full: false,
            settings: None,
        };
        self.pass_time(context, queue).await?;
        for _ in 0..LOOKS_MAX {
            match self.look_for(context, queue, &mut taking).await {
                Ok(true) if !taking.is_full => {}
                Ok(_) => break,
                // What was taken is handed out.
                Err(error) if error.is_retryable() && !taking.deliveries.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        let mut taken = taking.deliveries;
        taken.sort_unstable_by_key(|(lease, _)| lease.place.sequence);
        if lease_us != LEASE_DEFAULT_MS * 1000 {
            let now_us = wall_us();
            let ends = taken.iter().map(|(Lease { lane, place, until_us, .. }, _)| {
                (*lane, *place, later(until_us.saturating_sub(now_us).max(1)))
            });
            self.settle(context, queue, ends).await?;
        }
        for (lease, _) in &taken {
            self.queues.leases.note((context.namespace, queue), *lease);
        }
        Ok(taken.into_iter().map(|(_, delivery)| delivery).collect())
    }

    /// Looks once into all lanes; whether it is worth to look again.
    async fn look_for(
        &self,
        context: &Context<'_>,
        queue: &str,
        taking: &mut Taking,
    ) -> Result<bool, Error> {
        let Some(mut lines) = self.lines(context, queue, false).await? else { return Ok(false) };
        // Each is the first at times, so that none waits for ever where little is asked for.
        let turn = self.queues.leases.with((context.namespace, queue), |known| {
            known.turn = known.turn.wrapping_add(1);
            known.turn
        });
        let first = turn % lines.len().max(1);
        lines.rotate_left(first);
        let mut again = false;
        for line in lines {
            if taking.is_full || taking.deliveries.len() >= taking.wanted {
                return Ok(false);
            }
            again |= self.take_from(context, queue, &line, taking).await?;
        }
        Ok(again)
    }

    async fn take_from(
        &self,
        context: &Context<'_>,
        queue: &str,
        line: &Line,
        taking: &mut Taking,
    ) -> Result<bool, Error> {
        let left = taking.wanted - taking.deliveries.len();
        let count = if line.lane == UNORDERED { left } else { 1 };
        let spare = (DELIVERY_SPARE_BYTES * count).min(taking.room / 2);
        // By the time when it began to ask, so that nobody else has a message while its receiver still has it.
        let until_us = context.now_us.max(wall_us()).saturating_add(taking.lease_us);
        let bytes_max = Some((taking.room - spare).max(1));
        let mut pulled = self.pull(context, queue, line, (count, bytes_max)).await?;
        if pulled.is_unheard {
            self.queues.leases.forget((context.namespace, queue));
            return Ok(true);
        }
        if pulled.is_too_long && pulled.messages.is_empty() && taking.deliveries.is_empty() {
            // Alone it fits, unless somebody else has sent it.
            pulled = self.pull(context, queue, line, (1, None)).await?;
        }
        taking.is_full |= pulled.is_too_long;
        let mut again = false;
        for (place, message) in pulled.messages {
            let lease = Lease { lane: line.lane, place, until_us, is_released: false };
            again |= self.hand_out(context, queue, (lease, message), taking).await?;
        }
        Ok(again)
    }

    /// Hands a message out, if it is still for somebody; whether there is room for another instead.
    async fn hand_out(
        &self,
        context: &Context<'_>,
        queue: &str,
        (lease, message): (Lease, Message),
        taking: &mut Taking,
    ) -> Result<bool, Error> {
        let Lease { lane, place, until_us, .. } = lease;
        let now_us = context.now_us.max(wall_us());
        if place.attempt > 1 {
            let settings = match taking.settings {
                Some(settings) => settings,
                None => self.settings(context, queue).await?,
            };
            taking.settings = Some(settings);
            if settings.is_over(place.attempt - 1) {
                let letter = (MAX_DELIVERIES, place.attempt - 1, now_us);
                self.give_up(context, queue, (lane, place, &message), settings, letter).await?;
                return Ok(true);
            }
        }
        let kept = Kept::read(message, place.sequence, Some(place.stored_ns / 1000));
        if expires_at_us(&kept.message) <= now_us {
            let how = ACKNOWLEDGED.into();
            self.settle(context, queue, std::iter::once((lane, place, how))).await?;
            return Ok(true);
        }
        let Some(incarnation) = self.lane(context, queue, lane).await? else { return Ok(true) };
        let delivery = Delivery {
            receipt: Receipt { lane, place, until_us }.to_text(incarnation),
            attempt: u32::try_from(place.attempt).unwrap_or(u32::MAX),
            sent_at: Some(time(kept.sent_us)),
            lease_expires_at: Some(time(until_us)),
            message: Some(kept.message),
        };
        let bytes = delivery.encoded_len() + 8;
        if bytes > taking.room {
            if taking.deliveries.is_empty() {
                return Err(errors::too_large(context));
            }
            taking.is_full = true;
            let how = GIVEN_BACK.into();
            self.settle(context, queue, std::iter::once((lane, place, how))).await?;
            return Ok(false);
        }
        taking.room -= bytes;
        taking.deliveries.push((lease, delivery));
        Ok(false)
    }

    /// Has come again what was to, by what its receivers were told, and gives up what was delivered often enough.
    pub(super) async fn pass_time(&self, context: &Context<'_>, queue: &str) -> Result<(), Error> {
        let now_us = context.now_us.max(wall_us());
        let mut due = self.queues.leases.take_due((context.namespace, queue), now_us);
        if due.is_empty() {
            return Ok(());
        }
        let settings = self.settings(context, queue).await?;
        let is_over = |lease: &Lease| !lease.is_released && settings.is_over(lease.place.attempt);
        for lease in due.extract_if(.., |lease| is_over(lease)) {
            let Lease { lane, place, until_us, .. } = lease;
            if let Some(message) = self.message_at(context, queue, place.sequence).await? {
                let letter = (MAX_DELIVERIES, place.attempt, until_us);
                self.give_up(context, queue, (lane, place, &message), settings, letter).await?;
            }
        }
        due.retain(|lease| now_us < lease.until_us.saturating_add(BROUGHT_BACK_US));
        let back = due.iter().map(|lease| (lease.lane, lease.place, GIVEN_BACK.into()));
        self.settle(context, queue, back).await
    }

    /// Waits until there may be messages beyond what others were promised.
    pub(super) async fn wait_for_messages(
        &self,
        context: &Context<'_>,
        queue: &str,
        wanted: usize,
    ) {
        let key = (context.namespace, queue);
        let promises = &self.queues.promises;
        let mut attendance = self.queues.sources.attend(context.namespace, queue);
        let begun_us = wall_us();
        loop {
            // What is wrong, the call itself hears.
            let Ok(lines) = self.lines(context, queue, true).await else { return };
            let lines = lines.unwrap_or_default();
            let now_us = wall_us();
            let (due, next_us) =
                self.queues.leases.with(key, |known| (known.due(now_us), known.next_us(now_us)));
            let mut there = due + lines.iter().map(|line| line.there).sum::<usize>();
            if there == 0 && now_us.saturating_sub(begun_us) >= TRY_EVERY_US {
                // Whether they are away still only the server knows.
                there = lines.iter().map(|line| line.elsewhere).sum();
            }
            if promises.claim(key, there, wanted, now_us) {
                return;
            }
            let next = next_us.into_iter().chain(promises.end_us(key)).min();
            let next = next.map(|us| Duration::from_micros(us.saturating_sub(now_us)));
            let left = next.map_or(LOOK_EVERY, |next| next.min(LOOK_EVERY));
            rt::timeout(left, attendance.told()).await;
        }
    }
}
