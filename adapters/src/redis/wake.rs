//! How those who wait for messages of a queue hear of some: whatever may bring messages in line says so on the channel
//! `_prism:queue:<namespace>:<queue>`, by the same script, and a shard on which somebody waits is subscribed to it.
//!
//! It is the connection of topics ([`Topics`]) that the shard is subscribed on. A subscription stays when nobody waits any more, as long as
//! there are not too many: who receives once will do so again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::codec;
use super::errors;
use super::keyvalue::Answer;
use super::topics::Topics;
use crate::call::Context;
use crate::error::Error;
use crate::news::{Listener, News};

/// What the channels of queues begin with.
const CHANNEL: &str = "_prism:queue:";
/// Subscriptions that are kept though nobody waits.
const KEPT_MAX: usize = 1024;

/// The channel of a queue.
struct Subscription {
    news: Rc<News>,
    /// Redis has said so.
    stands: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Wakes(RefCell<HashMap<Box<str>, Subscription>>);

impl Wakes {
    /// Takes what came by a channel; whether it was one of a queue.
    pub(super) fn hear(&self, channel: &str) -> bool {
        if let Some(one) = self.0.borrow().get(channel) {
            one.news.tell();
        }
        channel.starts_with(CHANNEL)
    }

    /// Redis says that this subscription stands.
    pub(super) fn subscribed(&self, channel: &str) {
        if let Some(one) = self.0.borrow_mut().get_mut(channel) {
            one.stands = true;
        }
    }

    /// The connection is gone: whoever waits looks again, and subscribes again.
    pub(super) fn cut_off(&self) {
        let subscriptions = self.0.take();
        subscriptions.into_values().for_each(|one| one.news.tell());
    }

    /// Those that nobody waits for, once they are too many; they are forgotten.
    fn superfluous(&self) -> Vec<Box<str>> {
        let mut all = self.0.borrow_mut();
        if all.len() < KEPT_MAX {
            return Vec::new();
        }
        let idle = all.iter().filter(|(_, one)| one.stands && Rc::strong_count(&one.news) == 1);
        let idle: Vec<_> = idle.map(|(channel, _)| channel.clone()).collect();
        idle.iter().for_each(|channel| drop(all.remove(channel)));
        idle
    }

    /// Hears of a queue from now on, if the subscription stands.
    fn listen(&self, channel: &str) -> Option<Listener> {
        let all = self.0.borrow();
        all.get(channel).filter(|one| one.stands).map(|one| one.news.listen())
    }
}

impl Topics {
    /// Hears of what may bring messages in line of the queue whose key is called so, from now on.
    pub(super) async fn attend(
        self: &Rc<Self>,
        context: &Context<'_>,
        key_name: &str,
    ) -> Result<Listener, Error> {
        let channel = format!("{CHANNEL}{key_name}");
        if let Some(listener) = self.wakes.listen(&channel) {
            return Ok(listener);
        }
        let link = self.link();
        for idle in self.wakes.superfluous() {
            link.tell(1, |out| put(out, b"UNSUBSCRIBE", &idle));
        }
        let new = || Subscription { news: Rc::default(), stands: false };
        // Held on to, so that it is not superfluous before there is a listener.
        let _news = {
            let mut all = self.wakes.0.borrow_mut();
            all.entry(channel.as_str().into()).or_insert_with(new).news.clone()
        };
        // Whoever comes at the same time subscribes as well: that changes nothing.
        let read = link.call(context, 1, |out| put(out, b"SUBSCRIBE", &channel)).await?;
        if read.first() != Some(&b'>') {
            Answer::new(context, &read).next()?;
            return Err(errors::unexpected(context));
        }
        // The connection may have been lost behind that answer.
        self.wakes.listen(&channel).ok_or_else(|| link.refusal(context))
    }
}

fn put(out: &mut Vec<u8>, command: &[u8], channel: &str) {
    codec::put_command(out, 2);
    codec::put(out, command);
    codec::put(out, channel.as_bytes());
}
