//! The neighbours: sessions that do the handshake, write what they are given, and keep the exact set of what they hear.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bgpd::wire::{
    AfiSafi, Capability, DecodeContext, HEADER_LENGTH, MAX_MESSAGE_LENGTH, Message, Open, encode_keepalive,
    frame,
};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::routes::{DEVICE, Routes};

/// The address of a peer.
pub(crate) fn address(peer: usize) -> Ipv4Addr {
    let peer = u8::try_from(peer / 250).unwrap() as u32 * 256 + (peer % 250) as u32;
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 99, 1, 1).to_bits() + peer)
}

/// What one peer has, and how much of it is waited for.
#[derive(Default)]
struct Heard {
    has: Vec<u64>,
    count: usize,
    wanted: Option<usize>,
    up: bool,
    /// Its own routes: a device may send them back to it (FRR does), and that is not what is waited for.
    own: Range<usize>,
}

#[derive(Default)]
struct Shared {
    heard: Vec<Heard>,
    /// Peers that do not have what is waited for.
    missing: usize,
    /// When the last of them had it.
    reached: Option<Instant>,
    up: usize,
    last_up: Option<Instant>,
}

pub(crate) struct Peers {
    routes: &'static Routes,
    /// Routes that are each peer's own.
    each: usize,
    shared: Rc<RefCell<Shared>>,
    changed: Rc<Notify>,
    senders: Vec<Option<mpsc::UnboundedSender<Option<Bytes>>>>,
    tasks: Vec<Option<JoinHandle<()>>>,
}

impl Peers {
    pub(crate) fn new(routes: &Routes, each: usize) -> Self {
        // The benchmark ends with its process; the routes are shared by all tasks until then.
        let routes: &'static Routes = Box::leak(Box::new(routes.clone()));
        Self {
            routes,
            each,
            shared: Rc::default(),
            changed: Rc::default(),
            senders: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Begins to connect; trying again until it is let in.
    pub(crate) fn start(&mut self, peer: usize, asn: u32) {
        let mut shared = self.shared.borrow_mut();
        while shared.heard.len() <= peer {
            shared.heard.push(Heard::default());
            self.senders.push(None);
            self.tasks.push(None);
        }
        shared.heard[peer] = Heard {
            has: vec![0; self.routes.len().div_ceil(64)],
            own: peer * self.each..(peer + 1) * self.each,
            ..Heard::default()
        };
        drop(shared);
        let (sender, inbox) = mpsc::unbounded_channel();
        self.senders[peer] = Some(sender);
        let session = session(
            peer,
            asn,
            self.routes,
            Rc::clone(&self.shared),
            Rc::clone(&self.changed),
            inbox,
        );
        self.tasks[peer] = Some(tokio::task::spawn_local(session));
    }

    pub(crate) async fn connect(&mut self, peer: usize, asn: u32) {
        self.start(peer, asn);
        let up = self.all_up(peer + 1, *super::PATIENCE).await;
        assert!(up.is_ok(), "the device does not let peer {peer} in");
    }

    /// When the last of so many sessions was established, or how many are.
    pub(crate) async fn all_up(&self, count: usize, patience: Duration) -> Result<Instant, String> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let Shared { up, last_up, .. } = *self.shared.borrow();
            if let Some(at) = last_up
                && up == count
            {
                return Ok(at);
            }
            let changed = tokio::time::timeout_at(deadline, self.changed.notified()).await;
            changed.map_err(|_| format!("{up} of {count} sessions within {} s", patience.as_secs()))?;
        }
    }

    /// Lets timers of the session's beginning pass.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    pub(crate) fn send(&self, peer: usize, bytes: Bytes) {
        let sender = self.senders[peer].as_ref().expect("a peer that was started");
        // A session that has ended has said so; what is waited for will not come, and that is reported.
        drop(sender.send(Some(bytes)));
    }

    /// TCP ends with a reset.
    pub(crate) fn reset(&mut self, peer: usize) {
        if let Some(sender) = self.senders[peer].take() {
            drop(sender.send(None));
        }
        let mut shared = self.shared.borrow_mut();
        shared.up -= 1;
        shared.heard[peer].up = false;
    }

    /// When the last of these peers had so many of the prefixes, or how far they are.
    pub(crate) async fn until(
        &mut self,
        wanted: &[(usize, usize)],
        patience: Duration,
    ) -> Result<Instant, String> {
        {
            let mut shared = self.shared.borrow_mut();
            shared.missing = 0;
            shared.reached = Some(Instant::now());
            for heard in &mut shared.heard {
                heard.wanted = None;
            }
            for (peer, count) in wanted {
                let heard = &mut shared.heard[*peer];
                if heard.count != *count {
                    heard.wanted = Some(*count);
                    shared.missing += 1;
                }
            }
        }
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            if self.shared.borrow().missing == 0 {
                return Ok(self.shared.borrow().reached.expect("set above"));
            }
            if tokio::time::timeout_at(deadline, self.changed.notified())
                .await
                .is_err()
            {
                let shared = self.shared.borrow();
                let mut late: Vec<(usize, usize)> = shared
                    .heard
                    .iter()
                    .filter_map(|heard| Some((heard.count, heard.wanted?)))
                    .collect();
                late.sort_by_key(|(has, wanted)| has.abs_diff(*wanted));
                let (has, should) = late[late.len() / 2];
                let lost = shared.heard.iter().filter(|heard| !heard.up).count();
                return Err(format!(
                    "after {} s {} of {} peers are late, in the middle one with {has} prefixes, not {should}; {lost} sessions lost",
                    patience.as_secs(),
                    late.len(),
                    wanted.len(),
                ));
            }
        }
    }
}

async fn session(
    peer: usize,
    asn: u32,
    routes: &'static Routes,
    shared: Rc<RefCell<Shared>>,
    changed: Rc<Notify>,
    mut inbox: mpsc::UnboundedReceiver<Option<Bytes>>,
) {
    let mut told = String::new();
    // A listener whose queue is short (BIRD's has 8) forgets connections that their other end takes for established, and then hears of
    // them again at ever longer intervals. A client that is not answered tries a new one.
    let mut patience = Duration::from_secs(2);
    let stream = loop {
        let done = tokio::time::timeout(patience, handshake(peer, asn)).await;
        let done = done.unwrap_or_else(|_| {
            patience = (patience * 2).min(*super::PATIENCE);
            Err(ErrorKind::ConnectionReset.into())
        });
        match done {
            Ok(stream) => break stream,
            // Refused and cut off is how a device is that has just started.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset
                ) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
            Err(error) => {
                let text = error.to_string();
                if text != told {
                    eprintln!("peer {peer}: {text}; trying again");
                    told = text;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    {
        let mut shared = shared.borrow_mut();
        shared.heard[peer].up = true;
        shared.up += 1;
        shared.last_up = Some(Instant::now());
        changed.notify_waiters();
        changed.notify_one();
    }
    let context = DecodeContext {
        ebgp: asn != 65000,
        ..DecodeContext::default()
    };
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::task::spawn_local(async move {
        let mut alive = tokio::time::interval(Duration::from_secs(30));
        loop {
            tokio::select! {
                bytes = inbox.recv() => match bytes {
                    Some(Some(bytes)) => if writer.write_all(&bytes).await.is_err() { return },
                    Some(None) => {
                        // Closing with a linger of zero is a reset.
                        let socket = writer.as_ref();
                        socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO)).unwrap();
                        writer.forget();
                        return;
                    }
                    None => return std::future::pending().await,
                },
                _ = alive.tick() => {
                    let mut out = BytesMut::new();
                    encode_keepalive(&mut out);
                    if writer.write_all(&out).await.is_err() { return }
                }
            }
        }
    });
    let mut buffer = BytesMut::with_capacity(256 * 1024);
    let reading = async {
        loop {
            buffer.reserve(64 * 1024);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return eprintln!("peer {peer}: the device closed the session"),
                Err(error) => return eprintln!("peer {peer}: {error}"),
                Ok(_) => {}
            }
            while let Ok(Some((length, _))) = frame(&buffer, MAX_MESSAGE_LENGTH) {
                take(peer, &buffer[..length], &context, routes, &shared, &changed);
                buffer.advance(length);
            }
        }
    };
    tokio::select! {
        () = reading => {}
        _ = writing => {}
    }
    let mut shared = shared.borrow_mut();
    if std::mem::take(&mut shared.heard[peer].up) {
        shared.up -= 1;
    }
}

/// Puts an UPDATE into the set.
fn take(
    peer: usize,
    message: &[u8],
    context: &DecodeContext,
    routes: &Routes,
    shared: &Rc<RefCell<Shared>>,
    changed: &Notify,
) {
    if message.get(18) != Some(&2) || message.len() == HEADER_LENGTH {
        if message.get(18) == Some(&3) {
            eprintln!("peer {peer}: {:?}", Message::decode(message, context));
        }
        return;
    }
    let mut shared = shared.borrow_mut();
    let shared = &mut *shared;
    let Heard {
        has,
        count,
        wanted,
        own,
        ..
    } = &mut shared.heard[peer];
    let mut set = |number: usize, there: bool| {
        let (word, bit) = (&mut has[number / 64], 1_u64 << (number % 64));
        if !own.contains(&number) && (*word & bit != 0) != there {
            *word ^= bit;
            *count = if there { *count + 1 } else { *count - 1 };
        }
    };
    if !routes.take_dense(message, &mut set) {
        let Ok(Message::Update(update)) = Message::decode(message, context) else {
            panic!("peer {peer}: the device sent what cannot be read");
        };
        let mut set = |prefix, there| {
            if let Some(number) = routes.number(prefix) {
                set(number, there);
            }
        };
        for list in update.withdrawals() {
            list.for_each(|nlri| set(nlri.prefix, false));
        }
        for announcement in update.announcements() {
            announcement.prefixes.for_each(|nlri| set(nlri.prefix, true));
        }
    }
    if *wanted == Some(*count) {
        *wanted = None;
        shared.missing -= 1;
        if shared.missing == 0 {
            shared.reached = Some(Instant::now());
            changed.notify_one();
        }
    }
}

async fn handshake(peer: usize, asn: u32) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(address(peer).into(), 0))?;
    let mut stream = socket.connect(SocketAddr::new(DEVICE.into(), 179)).await?;
    stream.set_nodelay(true)?;
    let mut out = BytesMut::new();
    let capabilities = vec![
        Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
        Capability::RouteRefresh,
    ];
    Open::new(asn, 240, address(peer), capabilities).encode(&mut out);
    stream.write_all(&out).await?;
    for kind in [1, 4] {
        let mut header = [0; HEADER_LENGTH];
        stream.read_exact(&mut header).await?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length.saturating_sub(HEADER_LENGTH)];
        stream.read_exact(&mut body).await?;
        if header[18] != kind {
            let text = format!("message {} instead of {kind}: {body:?}", header[18]);
            return Err(io::Error::other(text));
        }
        if kind == 1 {
            let mut out = BytesMut::new();
            encode_keepalive(&mut out);
            stream.write_all(&out).await?;
        }
    }
    Ok(stream)
}
