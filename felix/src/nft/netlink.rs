//! Netlink framing: messages and attributes, written and read.
//!
//! Writing never fails: lengths are patched when a message or nest is closed. Reading is bounds-checked and ends
//! quietly at the first thing that does not add up, because the kernel is trusted but truncation is possible.
//! Layout: `struct nlmsghdr`, `struct nfgenmsg` (linux/nfnetlink.h), `struct nlattr` (linux/netlink.h).

/// Set on the type of an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYS: u16 = 10;

pub(super) const REQUEST: u16 = 0x001;
pub(super) const ACK: u16 = 0x004;
pub(super) const DUMP: u16 = 0x300;
pub(super) const DUMP_INTR: u16 = 0x010;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;

/// Messages under construction.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// One message of the nfnetlink family; `kind` as in `enum nf_tables_msg_types`, or a batch mark.
    pub(super) fn message(&mut self, kind: u16, flags: u16, seq: u32, body: impl FnOnce(&mut Buffer)) {
        self.raw_message(kind | (SUBSYS << 8), flags, seq, INET, 0, body);
    }

    /// A message with every part of its header said.
    pub(super) fn raw_message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        resource: u16,
        body: impl FnOnce(&mut Buffer),
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
    }

    /// Sets flags in the message that begins at `start`.
    pub(super) fn or_flags(&mut self, start: usize, flags: u16) {
        let at = start + 6;
        if let Some(&[a, b]) = self.bytes.get(at..at + 2) {
            self.patch(at, &(u16::from_ne_bytes([a, b]) | flags).to_ne_bytes());
        }
    }

    /// Overwrites bytes.
    pub(super) fn patch(&mut self, at: usize, with: &[u8]) {
        if let Some(to) = self.bytes.get_mut(at..at + with.len()) {
            to.copy_from_slice(with);
        }
    }

    /// Appends ready-made attributes.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn bytes(&mut self, kind: u16, payload: &[u8]) {
        // Callers keep payloads far below 64 KiB; a longer one would be cut here and refused by the kernel.
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(payload);
        self.pad();
    }

    /// A string with its terminator.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        let length = u16::try_from(text.len() + 5).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub(super) fn be16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Buffer)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message as read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// `nlmsg_type`.
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) seq: u32,
    /// Everything after `nlmsghdr`.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind `nfgenmsg`.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(4..).unwrap_or_default())
    }

    /// `nlmsgerr`: the error number (0 for an acknowledgement), and the kernel's own words if it has some.
    pub(super) fn error(&self) -> (i32, Option<String>) {
        /// `NLM_F_CAPPED`, `NLM_F_ACK_TLVS`, `NLMSGERR_ATTR_MSG`.
        const CAPPED: u16 = 0x100;
        const ACK_TLVS: u16 = 0x200;
        const MSG: u16 = 1;
        let code = ne32(self.payload).map_or(0, |v| v.cast_signed());
        let mut words = None;
        if self.flags & ACK_TLVS != 0 {
            let inner = self.payload.get(4..).and_then(ne32).unwrap_or(16) as usize;
            let skip = if self.flags & CAPPED != 0 {
                20
            } else {
                4 + inner.next_multiple_of(4)
            };
            let tail = Attributes(self.payload.get(skip..).unwrap_or_default());
            words = tail.find(MSG).map(text);
        }
        (-code, words)
    }
}

/// Messages in a received datagram.
#[derive(Debug, Clone, Copy)]
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = ne32(self.0)? as usize;
        let message = Message {
            kind: ne16(self.0.get(4..)?)?,
            flags: ne16(self.0.get(6..)?)?,
            seq: ne32(self.0.get(8..)?)?,
            payload: self.0.get(16..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes one after the other: type without flags, payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, payload)| (k == kind).then_some(payload))
    }

    pub(super) fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }

    pub(super) fn text(self, kind: u16) -> Option<String> {
        self.find(kind).map(text)
    }

    pub(super) fn be32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().map(|b| u32::from_be_bytes(*b))
    }

    pub(super) fn be64(self, kind: u16) -> Option<u64> {
        self.find(kind)?.first_chunk().map(|b| u64::from_be_bytes(*b))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(ne16(self.0)?);
        let kind = ne16(self.0.get(2..)?)? & 0x3fff;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

fn ne16(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn ne32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// A string attribute without its terminator.
fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|b| *b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(payload.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut buffer = Buffer::default();
        buffer.message(6, ACK, 7, |b| {
            b.text(1, "felix");
            b.nest(4, |b| b.be32(2, 9));
        });
        buffer.message(7, 0, 8, |b| b.bytes(3, &[1]));
        let read: Vec<Message<'_>> = Messages(buffer.as_slice()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].kind, read[0].seq), (0x0a06, 7));
        assert_eq!(read[0].attributes().text(1).as_deref(), Some("felix"));
        assert_eq!(read[0].attributes().nested(4).be32(2), Some(9));
        assert_eq!(read[1].attributes().find(3), Some(&[1][..]));
    }

    #[test]
    fn a_cut_message_ends_the_reading() {
        let mut buffer = Buffer::default();
        buffer.message(6, 0, 1, |b| b.text(1, "felix"));
        for cut in 0..buffer.len() {
            assert_eq!(Messages(&buffer.as_slice()[..cut]).count(), 0, "{cut}");
        }
        // Lengths that lie neither loop nor reach beyond the end.
        assert_eq!(Attributes(&[0, 0, 0, 0]).count(), 0);
        assert_eq!(Attributes(&[255, 255, 1, 0]).count(), 0);
    }
}
