//! Approve: the platform team lets an advanced team tune a namespace, until a day.

use prism_adapters::{Error, Kind};
use prism_proto::prism::namespace::v1 as proto;

use super::Asker;
use crate::access::permission_denied;
use crate::applied::Approved;
use crate::audit::event;
use crate::config::described::{Day, Scalar};
use crate::config::namespace_name_valid;
use crate::config::platform::{Platform, Tuning};
use crate::planned;
use crate::served::Served;

/// The longest reason, and the longest name of who approves.
const TEXT_BYTES_MAX: usize = 500;

impl Served {
    pub(super) fn approve(
        &mut self,
        asker: &Asker,
        request: &proto::ApproveRequest,
    ) -> Result<proto::ApproveResponse, Error> {
        self.check_is_applied("approve")?;
        let from = self.config.planned.clone();
        let platform = match from {
            Some(from) => self.platform(&from)?,
            None => Platform::default(),
        };
        let by = approver(asker, &platform, &request.by)?;
        if !namespace_name_valid(&request.namespace) {
            let expected = "is not a name: a lower-case letter, then up to 62 lower-case letters, digits and dashes";
            return Err(Error::field("NAMESPACE_INVALID", "namespace", expected));
        }
        let until = day(&request.until)?;
        let today = planned::today();
        if until.0 < today {
            let expected = format!("is before today, {today}");
            return Err(Error::field("UNTIL_INVALID", "until", expected));
        }
        if request.fields.is_empty() {
            let fields: Vec<_> = Tuning::ALL.iter().map(|field| field.name()).collect();
            let expected = format!("names nothing; write some of: {}", fields.join(", "));
            return Err(Error::field("FIELDS_INVALID", "fields", expected));
        }
        for (index, field) in request.fields.iter().enumerate() {
            Tuning::parse(field).map_err(|(message, remedy)| {
                let expected = format!("{message}; {remedy}");
                Error::field("FIELDS_INVALID", format!("fields[{index}]"), expected)
            })?;
        }
        for (field, text) in [("by", &by), ("reason", &request.reason)] {
            if text.len() > TEXT_BYTES_MAX || text.contains(char::is_control) {
                let expected = format!("is one line of {TEXT_BYTES_MAX} bytes at most");
                return Err(Error::field("TEXT_INVALID", field, expected));
            }
        }
        let mut fields = request.fields.clone();
        fields.sort_unstable();
        fields.dedup();
        let at = today.to_string();
        let approved = Approved {
            namespace: request.namespace.clone(),
            fields,
            by: by.clone(),
            at: at.clone(),
            until: until.0.to_string(),
            reason: request.reason.clone(),
        };
        let mut registry = self.registry.clone();
        if !registry.applied.approve(approved, &at) {
            let message = "there are as many approvals as may be; wait until some have ended";
            return Err(Error::new(Kind::ResourceExhausted, "APPROVALS_FULL", message));
        }
        self.remember(registry)?;
        let (namespace, fields) = (&request.namespace, request.fields.join(", "));
        tracing::info!(by, namespace, fields, until = %until.0, "approved");
        let until = until.0.to_string();
        let told = [
            ("by", by.as_str().into()),
            ("namespace", namespace.as_str().into()),
            ("fields", fields.into()),
            ("until", until.into()),
        ];
        self.audit.event(event("approve", told));
        Ok(proto::ApproveResponse { by, at })
    }
}

/// Who approves. Where callers are known, only the team that owns the platform may.
fn approver(asker: &Asker, platform: &Platform, by: &str) -> Result<String, Error> {
    let Asker::Known(caller) = asker else {
        let by = by.trim();
        return match by.is_empty() {
            false => Ok(by.to_owned()),
            true => {
                Err(Error::field("BY_MISSING", "by", "says who approves, for nobody is known here"))
            }
        };
    };
    match &platform.owner.team {
        Some(owner) if caller.is_of(&owner.value.0) => Ok(caller.name()),
        _ => Err(permission_denied()),
    }
}

fn day(text: &str) -> Result<Day, Error> {
    Day::parse(text).map_err(|(message, remedy)| {
        Error::field("UNTIL_INVALID", "until", format!("{message}; {remedy}"))
    })
}
