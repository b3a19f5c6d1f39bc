//! The codec alone.

use bgpd::wire::{
    DecodeContext, EncodeContext, FamilyContext, HEADER_LENGTH, Message, Update, UpdateBuilder, frame,
};
use bytes::BytesMut;

/// Any bytes, in any session (the first byte says which), decode to a message or to the NOTIFICATION that answers them; every
/// list of prefixes can be walked to its end.
pub fn message_decode(input: &[u8]) {
    let Some((bits, bytes)) = input.split_first() else {
        return;
    };
    let family = FamilyContext {
        negotiated: true,
        add_path: bits & 1 != 0,
        extended_next_hop: bits & 2 != 0,
    };
    let context = DecodeContext {
        four_octet_as: bits & 4 == 0,
        ebgp: bits & 8 != 0,
        extended_messages: bits & 16 != 0,
        allow_as_set: bits & 32 != 0,
        ipv4: family,
        ipv6: family,
        ..DecodeContext::default()
    };
    let _ = frame(bytes, context.max_message_length());
    match Message::decode(bytes, &context) {
        Ok(Message::Update(update)) => {
            let withdrawn: usize = update.withdrawals().map(Iterator::count).sum();
            let announced: usize = update.announcements().map(|list| list.prefixes.count()).sum();
            assert!(withdrawn + announced <= bytes.len());
        }
        Ok(message) => {
            let _ = format!("{message:?}");
        }
        Err(notification) => {
            let _ = notification.to_string();
        }
    }
}

/// What was believed of an UPDATE can be announced again, and reads back the same.
pub fn update_roundtrip(body: &[u8]) {
    let family = FamilyContext {
        negotiated: true,
        add_path: false,
        extended_next_hop: true,
    };
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
    let Ok(update) = Update::decode(body, &decode) else {
        return;
    };
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
            back.extend(
                second
                    .announcements()
                    .flat_map(|announcement| announcement.prefixes),
            );
            rest = &rest[length..];
        }
        assert_eq!(back, list.collect::<Vec<_>>());
    }
}
