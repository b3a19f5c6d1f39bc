//! The outer process: runs each device in turn, as often as asked, and puts the medians side by side.
//!
//! Every run is a process of its own in fresh namespaces, and has a limit (`BENCH_LIMIT`, seconds). What it measures comes as one
//! line a row; a run that ends otherwise, or not at all, is a row that says so.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::INSIDE;

/// What a device used, where that was looked at. Seconds and MB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Option<f64>,
    /// Resident at most, and resident now: with the pages of files that are mapped, which the page cache shares.
    pub(crate) peak: Option<f64>,
    pub(crate) now: Option<f64>,
    /// Of what is resident now, what belongs to no file.
    pub(crate) own: Option<f64>,
}

/// One thing measured.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// How long it took, or how far the device came when there was no more patience.
    pub(crate) seconds: Result<f64, String>,
    pub(crate) usage: Usage,
}

impl Row {
    /// To the outer process.
    pub(crate) fn tell(&self) {
        let Usage { cpu, peak, now, own } = self.usage;
        let numbers = [cpu, peak, now, own];
        let numbers = numbers.map(|number| number.map_or("-".to_owned(), |number| number.to_string()));
        let seconds = match &self.seconds {
            Ok(seconds) => seconds.to_string(),
            Err(why) => why.clone(),
        };
        println!("{}\t{seconds}\t{}", self.what, numbers.join("\t"));
    }

    fn hear(line: &str) -> Option<Self> {
        let mut words = line.split('\t');
        let what = words.next()?.to_owned();
        let seconds = words.next()?;
        let seconds = seconds.parse().map_err(|_| seconds.to_owned());
        let numbers: Vec<Option<f64>> = words.map(|word| word.parse().ok()).collect();
        let [cpu, peak, now, own] = numbers[..] else {
            return None;
        };
        Some(Self {
            what,
            seconds,
            usage: Usage { cpu, peak, now, own },
        })
    }

    fn print(&self, device: &str, beside: &str) {
        let seconds = match &self.seconds {
            Ok(seconds) => format!("{seconds:10.4} s"),
            Err(why) => format!("      failed: {why};"),
        };
        let Usage { cpu, peak, now, own } = self.usage;
        let mut more = String::new();
        let parts = [
            ("cpu", cpu, "s", 4),
            ("peak", peak, "MB", 1),
            ("now", now, "MB", 1),
            ("of no file", own, "MB", 1),
        ];
        for (name, value, unit, digits) in parts {
            if let Some(value) = value {
                more.push_str(&format!("  {name} {value:.digits$} {unit}"));
            }
        }
        println!("{device:10} {:36} {seconds}{more}{beside}", self.what);
    }
}

/// Runs and prints; false when a run failed.
pub(crate) fn run(scenario: &str, size: &str, devices: &str, rounds: usize) -> bool {
    let devices: Vec<&str> = devices.split(',').collect();
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(); devices.len()];
    let mut sound = true;
    println!("load {}", load());
    for _ in 0..rounds {
        for (device, rows) in devices.iter().zip(&mut rows) {
            sound &= one([scenario, size, device], rows);
        }
    }
    println!("load {}", load());
    if rounds > 1 || devices.len() > 1 {
        println!(
            "\nmedians of {rounds}; times and peaks as multiples of those of {}",
            devices[0]
        );
        let first = medians(&rows[0]);
        for (device, rows) in devices.iter().zip(&rows) {
            for row in medians(rows) {
                let same = first.iter().find(|other| other.what == row.what);
                let ratio = |of: fn(&Row) -> Option<f64>| same.and_then(|same| Some(of(&row)? / of(same)?));
                let ratios = [
                    ("time", ratio(|row| row.seconds.clone().ok())),
                    (
                        "cpu",
                        ratio(|row| row.usage.cpu).filter(|ratio| ratio.is_finite()),
                    ),
                    ("peak", ratio(|row| row.usage.peak)),
                ];
                let beside: String = ratios
                    .iter()
                    .filter_map(|(name, ratio)| Some(format!("  {name} x{:.2}", (*ratio)?)))
                    .collect();
                row.print(device, &format!("  |{beside}"));
            }
        }
    }
    sound
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// One device once.
fn one(words: [&str; 3], rows: &mut Vec<Row>) -> bool {
    let limit = std::env::var("BENCH_LIMIT")
        .ok()
        .and_then(|text| text.parse().ok());
    let deadline = Instant::now() + Duration::from_secs(limit.unwrap_or(600));
    let mut child = Command::new("unshare")
        .args(["-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(words)
        .env(INSIDE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, inbox) = channel();
    let reading = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut sound = true;
    loop {
        match inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match Row::hear(&line) {
                Some(row) => {
                    sound &= row.seconds.is_ok();
                    row.print(words[2], "");
                    rows.push(row);
                }
                None => println!("{line}"),
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("{:10} did not end within the limit", words[2]);
                sound = false;
                child.kill().unwrap();
                break;
            }
        }
    }
    let status = child.wait().unwrap();
    drop(inbox);
    reading.join().unwrap();
    if !status.success() && sound {
        println!("{:10} ended: {status}", words[2]);
        sound = false;
    }
    sound
}

/// The median of each number of each row, in the order of the rows. A row that failed once has no time, but what it came to.
fn medians(rows: &[Row]) -> Vec<Row> {
    let mut found: Vec<Row> = Vec::new();
    for row in rows {
        if found.iter().any(|known| known.what == row.what) {
            continue;
        }
        let same: Vec<&Row> = rows.iter().filter(|other| other.what == row.what).collect();
        let median = |of: fn(&Row) -> Option<f64>| {
            let values: Option<Vec<f64>> = same.iter().map(|row| of(row)).collect();
            let mut values = values?;
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            Some(match values.len() % 2 {
                0 => f64::midpoint(values[middle - 1], values[middle]),
                _ => values[middle],
            })
        };
        found.push(Row {
            what: row.what.clone(),
            seconds: same.iter().find_map(|row| row.seconds.clone().err()).map_or_else(
                || median(|row| row.seconds.clone().ok()).ok_or_else(String::new),
                Err,
            ),
            usage: Usage {
                cpu: median(|row| row.usage.cpu),
                peak: median(|row| row.usage.peak),
                now: median(|row| row.usage.now),
                own: median(|row| row.usage.own),
            },
        });
    }
    found
}
