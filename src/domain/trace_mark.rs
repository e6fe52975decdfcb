//! The trace of a request as far as it is stored: in the log with a decision, and in the events of
//! an order.

use uuid::Uuid;

use super::hex::{hex, unhex};
use super::wire::{Blob, Id};

/// The longest request id that is accepted from a client.
const MAX_REQUEST_ID: usize = 128;

/// The part of a trace that is stored with a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceMark {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub sampled: bool,
    /// `None`: the trace id, written as a UUID.
    pub request_id: Option<String>,
}

impl TraceMark {
    /// `00-<32 hex digits>-<16>-<2>`; later versions may append fields.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace_id, span_id, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let version: [u8; 1] = unhex(version)?;
        if version == [0xff] || version == [0] && parts.next().is_some() {
            return None;
        }
        let (trace_id, span_id, flags) = (unhex(trace_id)?, unhex(span_id)?, unhex::<1>(flags)?);
        let mark = Self { trace_id, span_id, sampled: flags[0] & 1 == 1, request_id: None };
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(mark)
    }

    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-0{}", hex(&self.trace_id), hex(&self.span_id), u8::from(self.sampled))
    }

    pub fn request_id(&self) -> String {
        self.request_id.clone().unwrap_or_else(|| Uuid::from_bytes(self.trace_id).to_string())
    }

    /// The form for the log, with the `id` that the decision made.
    pub fn packed(&self, id: Id) -> (Id, Blob, Option<&str>) {
        let place = [&self.trace_id[..], &self.span_id, &[u8::from(self.sampled)]].concat();
        (id, Blob(place), self.request_id.as_deref())
    }

    /// The inverse of [`Self::packed`]. `None`: the entry was not written by Rushgate.
    pub fn unpacked((id, place, request_id): (Id, Blob, Option<String>)) -> Option<(Uuid, Self)> {
        let (trace_id, rest) = place.0.split_first_chunk::<16>()?;
        let (span_id, rest) = rest.split_first_chunk::<8>()?;
        let request_id = request_id.filter(|id| is_request_id(id.as_bytes()));
        let sampled = rest == [1];
        Some((id.0, Self { trace_id: *trace_id, span_id: *span_id, sampled, request_id }))
    }
}

/// Printable ASCII without blanks, because it is put into headers and logs.
pub fn is_request_id(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn traceparents_are_read_as_w3c_says() {
        assert_eq!(TraceMark::parse(GIVEN).unwrap().traceparent(), GIVEN);
        let later = GIVEN.replacen("00", "cc", 1) + "-what-comes";
        assert_eq!(TraceMark::parse(&later).unwrap().traceparent(), GIVEN);
        for bad in [
            "",
            "00",
            &GIVEN.to_uppercase(),
            &GIVEN.replacen("00", "ff", 1),
            &(GIVEN.to_owned() + "-more"),
            &GIVEN.replace("b7ad6b7169203331", "0000000000000000"),
            &GIVEN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GIVEN.replace("-b7", "-7"),
        ] {
            assert_eq!(TraceMark::parse(bad), None, "{bad}");
        }
    }
}
