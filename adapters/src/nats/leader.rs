//! Reads of streams that the cluster keeps several copies of: by the leader of their stream, which has all that was acknowledged.
//!
//! A direct read is answered by whichever copy is asked, and that may be behind. The leader hands out one message at a time, in JSON; what is
//! known to lie side by side is asked for side by side.

use async_nats::Message;
use async_nats::header::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Nats;
use super::errors;
use super::holds::Holds;
use super::jetstream::{
    ApiError, SEQUENCE, STREAM_NOT_FOUND, SUBJECT, TIME_STAMP, Walked, header, number,
};
use super::link::{Answer, Ask, Outgoing};
use super::wire;
use crate::call::Context;
use crate::error::Error;

/// Messages that are asked for side by side.
const ASKED_MAX: usize = 64;

/// Errors of the API that say that there is no such message.
const NO_MESSAGE: u64 = 10037;

/// An answer of the leader's.
#[derive(Debug, Deserialize)]
struct Got {
    message: Option<Kept>,
    error: Option<ApiError>,
}

/// A message as the leader hands it out; bytes are in Base64.
#[derive(Debug, Deserialize)]
struct Kept {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

impl Kept {
    /// As a direct read would hand it over.
    fn message(self) -> Option<Message> {
        let payload = Bytes::from(STANDARD.decode(&self.data).ok()?);
        let block = STANDARD.decode(&self.hdrs).ok()?;
        let mut headers = wire::headers(&block)?;
        let sequence = self.seq.to_string();
        for (name, value) in
            [(SUBJECT, &self.subject), (SEQUENCE, &sequence), (TIME_STAMP, &self.time)]
        {
            headers.append(name, value.parse::<HeaderValue>().ok()?);
        }
        let length = payload.len();
        let (subject, headers) = (self.subject.into(), Some(headers));
        Some(Message {
            subject,
            reply: None,
            payload,
            headers,
            status: None,
            description: None,
            length,
        })
    }
}

impl Nats {
    /// What the leader of a stream has for each of these requests; nothing where there is no such message.
    pub(super) async fn ask_leader(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        requests: &[Value],
    ) -> Result<Vec<Option<Message>>, Error> {
        let api = format!("$JS.API.STREAM.MSG.GET.{}", holds.stream(context));
        let message = |request: &Value| Outgoing::plain(api.clone(), request.to_string().into());
        let ask = Ask::Each(requests.iter().map(message).collect());
        let Answer::Several(answers) = self.ask_stream(context, holds, &ask).await? else {
            return Err(errors::unexpected(context));
        };
        let mut found = Vec::with_capacity(answers.len());
        for answer in answers {
            let got: Got =
                serde_json::from_slice(&answer.payload).map_err(|_| errors::unexpected(context))?;
            found.push(match (got.message, got.error) {
                (Some(kept), None) => {
                    Some(kept.message().ok_or_else(|| errors::unexpected(context))?)
                }
                (None, Some(error)) if error.err_code == NO_MESSAGE => None,
                (None, Some(error)) if error.err_code == STREAM_NOT_FOUND => {
                    // Somebody has deleted it, with all that was in it.
                    self.streams.forget(context, holds);
                    None
                }
                (_, Some(error)) => return Err(errors::of_api(context, &error)),
                (None, None) => return Err(errors::unexpected(context)),
            });
        }
        Ok(found)
    }

    /// The same for one request.
    pub(super) async fn ask_leader_for(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        request: Value,
    ) -> Result<Option<Message>, Error> {
        Ok(self.ask_leader(context, holds, &[request]).await?.pop().flatten())
    }

    /// How many messages there are of these subjects, of which each has one.
    pub(super) async fn count_by_leader(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        subjects: &str,
    ) -> Result<u64, Error> {
        let (mut count, mut offset) = (0, 0);
        loop {
            let request = json!({ "subjects_filter": subjects, "offset": offset });
            let info = self.stream_api(context, "INFO", holds, &request).await;
            let info = info.map_err(|failure| failure.error(context))?;
            let page = info["state"]["subjects"].as_object();
            let Some(page) = page.filter(|page| !page.is_empty()) else { return Ok(count) };
            count += page.values().filter_map(Value::as_u64).sum::<u64>();
            offset += page.len();
            if offset as u64 >= info["total"].as_u64().unwrap_or(0) {
                return Ok(count);
            }
        }
    }

    /// Does what is asked of a direct read of several messages. How many there are behind them is not counted: 0 says that there are none.
    pub(super) async fn read_by_leader(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        request: &Value,
    ) -> Result<Walked<(u64, Message)>, Error> {
        let bytes = request["max_bytes"].as_u64().unwrap_or(u64::MAX);
        match request["multi_last"].as_array() {
            Some(subjects) => {
                let from = request["seq"].as_u64().unwrap_or(0);
                self.last_by_leader(context, holds, subjects, from, bytes).await
            }
            None => self.walk_by_leader(context, holds, request, bytes).await,
        }
    }

    /// The last messages of subjects, in the order of the stream; those from a number on, as far as so many bytes.
    async fn last_by_leader(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        subjects: &[Value],
        from: u64,
        bytes: u64,
    ) -> Result<Walked<(u64, Message)>, Error> {
        let mut found = Vec::new();
        for subjects in subjects.chunks(ASKED_MAX) {
            let requests: Vec<Value> =
                subjects.iter().map(|subject| json!({ "last_by_subj": subject })).collect();
            for message in self.ask_leader(context, holds, &requests).await?.into_iter().flatten() {
                let sequence = sequence(context, &message)?;
                if sequence >= from {
                    found.push((sequence, message));
                }
            }
        }
        found.sort_by_key(|(sequence, _)| *sequence);
        found.dedup_by_key(|(sequence, _)| *sequence);
        let mut left = bytes;
        let fits = |(_, message): &&(u64, Message)| {
            let fits = left > 0;
            left = left.saturating_sub(message.payload.len() as u64);
            fits
        };
        let kept = found.iter().take_while(fits).count();
        let behind = (found.len() - kept) as u64;
        found.truncate(kept);
        Ok(Walked { records: found, behind })
    }

    /// Messages from a number or a moment on.
    async fn walk_by_leader(
        &self,
        context: &Context<'_>,
        holds: Holds<'_>,
        request: &Value,
        bytes: u64,
    ) -> Result<Walked<(u64, Message)>, Error> {
        let count = request["batch"].as_u64().unwrap_or(1) as usize;
        let filter = &request["next_by_subj"];
        let begin = match &request["start_time"] {
            Value::Null => json!({ "seq": request["seq"], "next_by_subj": filter }),
            moment => json!({ "start_time": moment, "next_by_subj": filter }),
        };
        let mut next = self.ask_leader_for(context, holds, begin).await?;
        let (mut records, mut left) = (Vec::new(), bytes);
        while let Some(message) = next {
            let mut last = sequence(context, &message)?;
            left = left.saturating_sub(message.payload.len() as u64);
            records.push((last, message));
            // Where all messages are of one subject, those that follow it are most often right behind it.
            let is_dense = matches!(holds, Holds::Records(_));
            let ahead = if is_dense { (count - records.len()).min(ASKED_MAX) } else { 0 };
            if ahead > 0 && left > 0 {
                let numbers = last + 1..=last + ahead as u64;
                let requests: Vec<Value> = numbers.map(|number| json!({ "seq": number })).collect();
                // What is behind one that is not there may have been stored after it was looked for, and so may that one.
                let found = self.ask_leader(context, holds, &requests).await?;
                let is_meant = |message: &Message| header(message, SUBJECT) == filter.as_str();
                for message in found.into_iter().map_while(|found| found.filter(is_meant)) {
                    if left == 0 {
                        break;
                    }
                    last = sequence(context, &message)?;
                    left = left.saturating_sub(message.payload.len() as u64);
                    records.push((last, message));
                }
            }
            if records.len() >= count || left == 0 {
                return Ok(Walked { records, behind: 1 });
            }
            let request = json!({ "seq": last + 1, "next_by_subj": filter });
            next = self.ask_leader_for(context, holds, request).await?;
        }
        Ok(Walked { records, behind: 0 })
    }
}

fn sequence(context: &Context<'_>, message: &Message) -> Result<u64, Error> {
    number(message, SEQUENCE).ok_or_else(|| errors::unexpected(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_leaders_is_as_a_direct_read_has_it() {
        let text = r#"{"message":{"subject":"a.b","seq":9,"hdrs":"TkFUUy8xLjANCks6IHYNCg0K","data":"aGVsbG8=",
                      "time":"2026-11-27T01:02:03.5Z"}}"#;
        let message =
            serde_json::from_str::<Got>(text).unwrap().message.unwrap().message().unwrap();
        let headers = message.headers.as_ref().unwrap();
        let header = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(&message.payload[..], b"hello");
        assert_eq!(header("K").as_deref(), Some("v"));
        assert_eq!(
            (header(SUBJECT).as_deref(), number(&message, SEQUENCE)),
            (Some("a.b"), Some(9))
        );
        assert_eq!(header(TIME_STAMP).as_deref(), Some("2026-11-27T01:02:03.5Z"));
        let plain = r#"{"subject":"a","seq":1,"time":"x"}"#;
        let plain = serde_json::from_str::<Kept>(plain).unwrap().message().unwrap();
        assert!(plain.payload.is_empty());
        for bad in [
            r#"{"subject":"a","seq":1,"time":"x\r\ny"}"#,
            r#"{"subject":"a","seq":1,"time":"x","data":"!"}"#,
            r#"{"subject":"a","seq":1,"time":"x","hdrs":"aGVsbG8="}"#,
        ] {
            assert!(serde_json::from_str::<Kept>(bad).unwrap().message().is_none(), "{bad}");
        }
    }
}
