//! The fuzz targets on the stable compiler: a fixed sequence of inputs, mutated out of seeds, the same on every machine.
//!
//! `BGPD_FUZZ_RUNS=N cargo test --release -p bgpd --test fuzz` runs N inputs a target, `BGPD_FUZZ_SEED` draws others;
//! `BGPD_FUZZ_CORPUS=DIRECTORY` writes the seeds down for libFuzzer instead. A failing input is
//! printed in hexadecimal and belongs into [`SEEDS`], so that it is never forgotten.

#![allow(unreachable_pub)] // The targets are a library elsewhere.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Two inputs put together, cut, and changed in a few places.
fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    if random.below(3) == 0 {
        let other = &seeds[random.below(seeds.len())];
        let (at, from) = (random.below(input.len() + 1), random.below(other.len() + 1));
        input.truncate(at);
        input.extend_from_slice(&other[from..]);
    }
    for _ in 0..random.below(8) {
        let at = random.below(input.len() + 1);
        match random.below(5) {
            0 => input.insert(at, random.next() as u8),
            _ if at == input.len() => input.push(random.next() as u8),
            1 => drop(input.remove(at)),
            2 => input[at] ^= 1 << random.below(8),
            _ => input[at] = random.next() as u8,
        }
    }
    input
}

fn run(target: fn(&[u8]), name: &str, seeds: &[Vec<u8>], default: u64) {
    if let Ok(corpus) = std::env::var("BGPD_FUZZ_CORPUS") {
        let directory = std::path::Path::new(&corpus).join(name);
        std::fs::create_dir_all(&directory).unwrap();
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number:03}")), seed).unwrap();
        }
        return;
    }
    let runs = environment("BGPD_FUZZ_RUNS", default);
    let mut random = Random(environment("BGPD_FUZZ_SEED", 1));
    let all = seeds.iter().cloned().map(Some);
    for input in all.chain(std::iter::repeat_n(None, runs as usize)) {
        let input = input.unwrap_or_else(|| mutated(seeds, &mut random));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&input))) {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied());
            panic!("{}\n{hex}", text.unwrap_or("a panic"));
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Steps of `session`, by hand, so that mutation starts where something happens.
fn lives() -> Vec<Vec<u8>> {
    // Speaker's bits, then steps: (what, who, ...). Peer 0 connects or is connected to; OPEN, KEEPALIVE.
    let up = |who: u8, bits: u8, more: u8| vec![0, who, 8, who, bits, more, 9, who, 0, 0];
    let connected = |who: u8, bits: u8, more: u8| vec![2, who, 8, who, bits, more, 9, who, 0, 0];
    let updates = |who: u8| {
        let each = [0x05, 0x46, 0xc1, 0x87, 0x09, 0x4b].into_iter();
        each.flat_map(|a| [10, who, a, a ^ 0x1f]).collect::<Vec<u8>>()
    };
    let mut all = Vec::new();
    for bits in [0, 1, 2, 6, 16, 23] {
        for open in [0, 0x18, 0x38, 0x58, 0x7f, 0x84] {
            let mut life = vec![bits];
            life.extend(up(0, open, 0x42));
            life.extend(connected(1, open, 2));
            life.extend(up(2, open | 0x40, 0));
            life.extend([15, 0x55]);
            for who in 0..3 {
                life.extend(updates(who));
            }
            life.extend([12, 0, 8, 0, 12, 1, 9, 0, 12, 2, 2, 0, 12, 2, 4, 0]);
            life.extend([3, 0, 13, 100, 14, 0]);
            life.extend(up(0, open, 0x43));
            life.extend([16, 0x24, 18, 0x41, 19, 0x0f, 17, 0x90, 17, 0x20, 13, 255]);
            // Two out of the range, and a stranger.
            life.extend([0, 3, 8, 3, open, 0, 9, 3, 0, 0, 0, 4, 0, 5, 0, 6]);
            life.extend(updates(3));
            life.extend([16, 0x1c, 14, 0, 14, 0, 14, 0]);
            all.push(life);
        }
    }
    // Both are strict: BFD comes up before the KEEPALIVE or after it, goes down, is switched off, or never comes up at all.
    for open in [0, 0x18, 0x84] {
        let mut life = vec![0];
        life.extend(up(0, open, 0xc0));
        life.extend([18, 0x80]);
        life.extend(updates(0));
        life.extend([18, 0xa0, 14, 0, 14, 0]);
        life.extend([0, 0, 8, 0, open, 0xc0, 18, 0x80, 18, 0xa0, 14, 0]);
        life.extend([0, 0, 8, 0, open, 0xc0, 18, 0xb0, 9, 0, 0, 0]);
        life.extend([17, 0, 18, 0xa0, 14, 0]);
        life.extend(up(0, open, 0xc0));
        life.extend([16, 0x09, 14, 0]);
        life.extend(up(0, open, 0xc0));
        life.extend([13, 255, 14, 0, 14, 0, 14, 0]);
        all.push(life);
    }
    all.extend(SEEDS.iter().map(|text| hex(text)));
    all.extend(recorded());
    all
}

/// The sessions of others, as they were recorded: OPEN, KEEPALIVE, UPDATEs, a loss. Who comes is peer 2, which may be of any other AS,
/// or somebody out of the range.
fn recorded() -> Vec<Vec<u8>> {
    let opens = by_speaker(OPENS);
    let mut all = Vec::new();
    for (speaker, updates) in by_speaker(UPDATES) {
        let open = &opens.iter().find(|(name, _)| *name == speaker).unwrap().1[0];
        for (number, some) in updates.chunks(6).enumerate() {
            let who = 2 + (number % 2) as u8;
            let mut life = vec![[0, 1, 16][number % 3], 0, who];
            // A body under a good header: its length, its type less one.
            let mut say = |kind: u8, body: &[u8]| {
                if let Ok(length) = u8::try_from(body.len()) {
                    life.extend([7, who, length, kind - 1]);
                    life.extend_from_slice(body);
                }
            };
            say(1, open);
            say(4, &[]);
            for update in some {
                say(2, update);
            }
            life.extend([15, 0x55, 13, 50, 14, 0, 3, who, 14, 0, 16, 0x24, 14, 0]);
            all.push(life);
        }
    }
    all
}

/// Lines of hexadecimal below the name of each speaker.
fn by_speaker(text: &'static str) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut all: Vec<(&str, Vec<Vec<u8>>)> = Vec::new();
    for line in text.lines().skip(1) {
        match (line.strip_prefix("# "), all.last_mut()) {
            (Some(speaker), _) => all.push((speaker, Vec::new())),
            (None, Some((_, bodies))) => bodies.push(hex(line)),
            (None, None) => {}
        }
    }
    all
}

/// Inputs that once failed.
const SEEDS: &[&str] = &[
    // A peer that was passive and no longer is was never connected to.
    "0000020802000009020000108b",
    // A peer that did not read, asked for its routes and fell out of the log was told nothing when it read again: the walk that it had asked
    // for was empty, and what it had missed came behind it.
    "17000008001842090002ff76ff480000ffff01ffffff00ffff",
];

/// Bodies of UPDATEs as BIRD, FRR, GoBGP, OpenBGPD and ExaBGP sent them to us.
const UPDATES: &str = include_str!("fuzz_updates.txt");

/// Bodies of OPENs of the same.
const OPENS: &str = include_str!("fuzz_opens.txt");

fn bodies() -> Vec<Vec<u8>> {
    let lines = UPDATES.lines().filter(|line| !line.starts_with('#'));
    lines.map(hex).filter(|body| !body.is_empty()).collect()
}

#[test]
fn any_life_of_a_speaker_ends_with_nothing_left() {
    run(targets::session::session, "session", &lives(), 2_000);
}

/// A seed that is no session would start mutation where nothing happens.
#[test]
fn what_was_recorded_can_be_read() {
    let opens = by_speaker(OPENS);
    assert_eq!(opens.len(), 5);
    for (speaker, open) in opens {
        let read = bgpd::wire::Open::decode(&open[0]).unwrap();
        assert_eq!(read.asn, 65002, "{speaker}");
    }
    assert!(recorded().len() >= 10);
}

#[test]
fn any_bytes_are_a_message_or_an_error() {
    let messages = bodies().into_iter().flat_map(|body| {
        [0, 1, 7, 24, 63].map(|bits| {
            let mut input = vec![bits];
            input.extend([0xff; 16]);
            input.extend((body.len() as u16 + 19).to_be_bytes());
            input.push(2);
            input.extend_from_slice(&body);
            input
        })
    });
    run(
        targets::wire::message_decode,
        "message_decode",
        &messages.collect::<Vec<_>>(),
        50_000,
    );
}

#[test]
fn what_was_read_can_be_written_and_read_again() {
    run(
        targets::wire::update_roundtrip,
        "update_roundtrip",
        &bodies(),
        50_000,
    );
}
