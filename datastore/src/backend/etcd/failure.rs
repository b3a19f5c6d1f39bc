//! What a failed call means: could it have been done, and is it worth asking another member?

use std::error::Error as _;

use etcd_client::Error as EtcdError;
use tonic::{Code, ConnectError, Status};

use crate::store::Error;

/// A call that was not answered as hoped.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// Nothing was done. Another member may do it.
    NotDone(String),
    /// As `NotDone`, and what we know of this user's token is out of date.
    Login(String),
    /// It may have been done.
    Unknown(String),
    /// The revision that was asked for is compacted.
    Compacted,
    /// The revision that was asked for is in the future.
    Future,
    /// The answer is larger than this side takes.
    AnswerTooLarge,
    /// Refused, as every member would.
    Refused(Error),
}

impl Failure {
    /// The failure of a call that changes nothing, or that is known not to have begun.
    pub(super) fn into_read_error(self) -> Error {
        match self {
            Self::NotDone(reason) | Self::Login(reason) | Self::Unknown(reason) => {
                Error::Unavailable { reason }
            }
            Self::Compacted => Error::Unavailable {
                reason: "etcd compacts faster than can be read".to_owned(),
            },
            Self::Future => Error::Unavailable {
                reason: "etcd's revision went back while reading".to_owned(),
            },
            Self::AnswerTooLarge => Error::Unavailable {
                reason: "an answer of etcd is too large".to_owned(),
            },
            Self::Refused(error) => error,
        }
    }

    /// True if the connection is to be made anew.
    pub(super) fn spoils_connection(&self) -> bool {
        matches!(self, Self::NotDone(_) | Self::Login(_) | Self::Unknown(_))
    }
}

impl From<EtcdError> for Failure {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::GRpcStatus(status) => from_status(&status),
            EtcdError::IoError(e) => Self::NotDone(e.to_string()),
            // Only from the making of a client: certificates that cannot be read.
            EtcdError::TransportError(e) => invalid(root_cause(&e)),
            EtcdError::InvalidArgs(reason) => invalid(reason),
            EtcdError::InvalidUri(e) => invalid(e.to_string()),
            EtcdError::InvalidMetadataValue(e) => invalid(e.to_string()),
            other => Self::Unknown(other.to_string()),
        }
    }
}

fn invalid(reason: String) -> Failure {
    Failure::Refused(Error::Invalid {
        reason: format!("etcd: {reason}"),
    })
}

/// The messages are etcd's own (`api/v3rpc/rpctypes/error.go`), the same in all releases since 3.2.
fn from_status(status: &Status) -> Failure {
    let message = status.message();
    let text = message.strip_prefix("etcdserver: ").unwrap_or(message);
    if never_sent(status) {
        return Failure::NotDone(root_cause(status));
    }
    match (status.code(), text) {
        // Looked at before anything else is.
        (Code::Unavailable, "no leader") | (Code::ResourceExhausted, "too many requests") => {
            Failure::NotDone(format!("etcd: {text}"))
        }
        (Code::Unauthenticated, _) | (Code::InvalidArgument, "revision of auth store is old") => {
            Failure::Login(format!("etcd: {text}"))
        }
        (Code::OutOfRange, "mvcc: required revision has been compacted") => Failure::Compacted,
        (Code::OutOfRange, "mvcc: required revision is a future revision") => Failure::Future,
        (Code::OutOfRange, _) if text.contains("message length too large") => Failure::AnswerTooLarge,
        (Code::ResourceExhausted, "mvcc: database space exceeded") => Failure::Refused(Error::Unavailable {
            reason: "etcd is full: compact and defragment it, then disarm its NOSPACE alarm".to_owned(),
        }),
        (Code::PermissionDenied, _) => invalid(format!("this user may not do that ({text})")),
        (Code::InvalidArgument, "user name is empty") => invalid(
            "it asks for a user name (username= with password-file=, or ETCD_USERNAME and ETCD_PASSWORD)"
                .to_owned(),
        ),
        (Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented | Code::DataLoss, _) => {
            invalid(text.to_owned())
        }
        _ => {
            let cause = root_cause(status);
            let text = if text.is_empty() || text == "transport error" {
                &cause
            } else {
                text
            };
            Failure::Unknown(format!("etcd: {text}"))
        }
    }
}

/// True if the request cannot have left: there was no connection.
fn never_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The innermost error's words: the ones that say something.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: Code, message: &str) -> Failure {
        Failure::from(EtcdError::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_what_is_certain_counts_as_not_done() {
        assert!(matches!(
            of(Code::Unavailable, "etcdserver: no leader"),
            Failure::NotDone(_)
        ));
        assert!(matches!(
            of(Code::ResourceExhausted, "etcdserver: too many requests"),
            Failure::NotDone(_)
        ));
        assert!(matches!(
            of(Code::Unauthenticated, "etcdserver: invalid auth token"),
            Failure::Login(_)
        ));
        for (code, message) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (Code::Unavailable, "connection reset"),
            (Code::Unknown, "transport error"),
            (Code::Cancelled, "operation was canceled"),
            (Code::Internal, "h2 protocol error"),
            (Code::DeadlineExceeded, ""),
        ] {
            assert!(matches!(of(code, message), Failure::Unknown(_)), "{message}");
        }
    }

    #[test]
    fn a_refused_connection_was_not_sent_and_is_named() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        let Failure::NotDone(reason) = Failure::from(EtcdError::GRpcStatus(status)) else {
            panic!("not recognised")
        };
        assert_eq!(reason, "connection refused");
    }

    #[test]
    fn what_no_member_would_do_is_not_tried_at_the_next() {
        for (code, message) in [
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::InvalidArgument, "etcdserver: request is too large"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
        ] {
            let error = of(code, message).into_read_error();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        assert!(matches!(
            of(
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted"
            ),
            Failure::Compacted
        ));
        assert!(matches!(
            of(
                Code::OutOfRange,
                "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes"
            ),
            Failure::AnswerTooLarge
        ));
        let full = of(
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        )
        .into_read_error();
        assert!(full.is_transient() && full.to_string().contains("NOSPACE"));
    }
}
