//! What is announced: prefixes with numbers, and finished UPDATEs.

use std::net::Ipv4Addr;
use std::ops::Range;

use bgpd::wire::{
    AsPath, EncodeContext, Family, HEADER_LENGTH, Ipv4Prefix, PathAttributes, Prefix, UpdateBuilder,
};
use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;

/// Numbered prefixes. In the dense set the number follows from the address.
#[derive(Clone)]
pub(crate) struct Routes {
    prefixes: Vec<Ipv4Prefix>,
    numbers: Option<HashMap<Ipv4Prefix, u32>>,
    /// Prefixes that share a set of attributes.
    together: usize,
}

/// First address of the dense set: 11.0.0.0.
const BASE: u32 = 0x0b00_0000;

impl Routes {
    /// /32s in order, all with the same attributes.
    pub(crate) fn dense(count: usize) -> Self {
        let prefix = |i: usize| Ipv4Prefix::new(BASE + u32::try_from(i).unwrap(), 32);
        Self {
            prefixes: (0..count).map(prefix).collect(),
            numbers: None,
            together: usize::MAX,
        }
    }

    /// /16 to /24 as in the table of the Internet, eight to a set of attributes.
    pub(crate) fn dfz(count: usize) -> Self {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut address = 0x0100_0000_u64;
        let mut prefixes = Vec::with_capacity(count);
        while prefixes.len() < count {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let length = match random % 1000 {
                0..=599 => 24,
                600..=689 => 23,
                690..=799 => 22,
                800..=859 => 21,
                860..=919 => 20,
                920..=959 => 19,
                960..=984 => 18,
                985..=992 => 17,
                _ => 16,
            };
            let size = 1_u64 << (32 - length);
            address = address.next_multiple_of(size);
            if [10, 127].contains(&(address >> 24)) {
                address = ((address >> 24) + 1) << 24;
            }
            prefixes.push(Ipv4Prefix::new(
                u32::try_from(address).expect("room for all"),
                length as u8,
            ));
            address += size;
        }
        let numbers = prefixes.iter().enumerate().map(|(i, p)| (*p, i as u32)).collect();
        Self {
            prefixes,
            numbers: Some(numbers),
            together: 8,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.prefixes.len()
    }

    /// The number of a prefix.
    pub(crate) fn number(&self, prefix: Prefix) -> Option<usize> {
        let Prefix::V4(prefix) = prefix else { return None };
        match &self.numbers {
            Some(numbers) => numbers.get(&prefix).map(|number| *number as usize),
            None => Some(prefix.bits().checked_sub(BASE)? as usize)
                .filter(|number| *number < self.prefixes.len() && prefix.length() == 32),
        }
    }

    /// Tells `see` the numbers in an UPDATE's two lists of IPv4 prefixes, if all of them are /32s of the dense set: the bench shares
    /// the cores with the device, and with hundreds of receivers a decoder of all there may be would be most of what is measured.
    pub(crate) fn take_dense(&self, message: &[u8], mut see: impl FnMut(usize, bool)) -> bool {
        fn list(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
            let (length, rest) = bytes.split_first_chunk()?;
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        }
        let lists = message
            .get(HEADER_LENGTH..)
            .and_then(list)
            .and_then(|(gone, rest)| {
                let (_, announced) = list(rest)?;
                Some((gone, announced))
            });
        let Some((gone, announced)) = lists.filter(|_| self.numbers.is_none()) else {
            return false;
        };
        if gone.is_empty() && announced.is_empty() || !(gone.len() + announced.len()).is_multiple_of(5) {
            return false;
        }
        for (bytes, there) in [(gone, false), (announced, true)] {
            for prefix in bytes.chunks(5) {
                let &[32, a, b, c, d] = prefix else { return false };
                let number = u32::from_be_bytes([a, b, c, d]).wrapping_sub(BASE) as usize;
                if number < self.prefixes.len() {
                    see(number, there);
                }
            }
        }
        true
    }

    pub(crate) fn announce(&self, peer: usize, asn: u32) -> Bytes {
        self.announce_some(peer, asn, 0..self.len())
    }

    pub(crate) fn announce_some(&self, peer: usize, asn: u32, which: Range<usize>) -> Bytes {
        let inside = asn == 65000;
        let builder = UpdateBuilder::new(EncodeContext {
            ebgp: !inside,
            ..EncodeContext::default()
        });
        let mut out = BytesMut::new();
        let chunk = self.together.min(which.len().max(1));
        for (set, prefixes) in self.prefixes[which].chunks(chunk).enumerate() {
            let set = u32::try_from(set).unwrap();
            let path = match (inside, self.together) {
                (true, _) => AsPath::empty(),
                (false, usize::MAX) => AsPath::sequence([asn]),
                (false, _) => AsPath::sequence([asn, 100_000 + set, 200_000 + set % 5000, 64_000 + set % 7]),
            };
            let attributes = PathAttributes {
                as_path: path,
                next_hop: Some(std::net::IpAddr::V4(super::peers::address(peer)).into()),
                local_pref: inside.then_some(100),
                ..PathAttributes::default()
            };
            let prefixes = prefixes.iter().map(|prefix| Prefix::V4(*prefix).into());
            builder.announce(Family::Ipv4Unicast, &attributes, prefixes, &mut out);
        }
        out.freeze()
    }

    pub(crate) fn withdraw(&self) -> Bytes {
        self.withdraw_some(0..self.len())
    }

    pub(crate) fn withdraw_some(&self, which: Range<usize>) -> Bytes {
        let mut out = BytesMut::new();
        let prefixes = self.prefixes[which]
            .iter()
            .map(|prefix| Prefix::V4(*prefix).into());
        UpdateBuilder::new(EncodeContext::default()).withdraw(Family::Ipv4Unicast, prefixes, &mut out);
        out.freeze()
    }
}

/// Where the device is.
pub(crate) const DEVICE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
