//! What was believed of an UPDATE can be announced again, and reads back the same.
#![no_main]

use bgpd::wire::{DecodeContext, EncodeContext, FamilyContext, HEADER_LENGTH, Update, UpdateBuilder, frame};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let family = FamilyContext { negotiated: true, add_path: false, extended_next_hop: true };
    let decode = DecodeContext {
        ebgp: false,
        extended_messages: true,
        allow_as_set: true,
        ipv4: family,
        ipv6: family,
        ..DecodeContext::default()
    };
    let builder = UpdateBuilder::new(EncodeContext {
        ebgp: false,
        extended_messages: true,
        ipv4: family,
        ipv6: family,
        ..EncodeContext::default()
    });
    let Ok(update) = Update::decode(body, &decode) else { return };
    for announcement in update.announcements() {
        let mut attributes = update.attributes.clone().with_next_hop(announcement.next_hop);
        attributes.local_pref = attributes.local_pref.or(Some(100));
        let mut out = BytesMut::new();
        let list = announcement.prefixes;
        let packed = builder.announce(list.family(), &attributes, list.clone(), &mut out);
        if packed.refusal.is_some() {
            continue;
        }
        let mut back = Vec::new();
        let mut rest = &out[..];
        while let Some((length, _)) = frame(rest, 65_535).expect("a good header") {
            let second = Update::decode(&rest[HEADER_LENGTH..length], &decode).expect("a good message");
            assert_eq!(second.attributes, attributes);
            back.extend(second.announcements().flat_map(|announcement| announcement.prefixes));
            rest = &rest[length..];
        }
        assert_eq!(back, list.collect::<Vec<_>>());
    }
});
