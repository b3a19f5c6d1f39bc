//! Any bytes, in any session, decode to a message or to the NOTIFICATION that answers them; every list of
//! prefixes can be walked to its end.
#![no_main]

use bgpd::wire::{DecodeContext, FamilyContext, Message, frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (bits, bytes) = input;
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
});
