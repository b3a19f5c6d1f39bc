//! The neighbours: sessions that do the handshake, write what they are given, and keep the exact set of what they hear.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
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
    shared: Rc<RefCell<Shared>>,
    changed: Rc<Notify>,
    senders: Vec<Option<mpsc::UnboundedSender<Option<Bytes>>>>,
    tasks: Vec<Option<JoinHandle<()>>>,
}

impl Peers {
    pub(crate) fn new(routes: &Routes) -> Self {
        // The benchmark ends with its process; the routes are shared by all tasks until then.
        let routes: &'static Routes = Box::leak(Box::new(routes.clone()));
        Self {
            routes,
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
        let up = self.all_up(peer + 1, super::PATIENCE).await;
        assert!(up.is_some(), "the device does not let peer {peer} in");
    }

    /// When the last of so many sessions was established.
    pub(crate) async fn all_up(&self, count: usize, patience: Duration) -> Option<Instant> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            if self.shared.borrow().up == count {
                return self.shared.borrow().last_up;
            }
            tokio::time::timeout_at(deadline, self.changed.notified())
                .await
                .ok()?;
        }
    }

    /// Lets timers of the session's beginning pass.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    pub(crate) fn send(&self, peer: usize, bytes: Bytes) {
        let sender = self.senders[peer].as_ref().expect("a peer that was started");
        sender.send(Some(bytes)).expect("a session that goes on");
    }

    /// TCP ends with a reset.
    pub(crate) fn reset(&mut self, peer: usize) {
        if let Some(sender) = self.senders[peer].take() {
            sender.send(None).expect("a session that goes on");
        }
        let mut shared = self.shared.borrow_mut();
        shared.up -= 1;
        shared.heard[peer].up = false;
    }

    /// When the last of these peers had so many of the prefixes.
    pub(crate) async fn until(&mut self, wanted: &[(usize, usize)], patience: Duration) -> Option<Instant> {
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
                return self.shared.borrow().reached;
            }
            if tokio::time::timeout_at(deadline, self.changed.notified())
                .await
                .is_err()
            {
                let shared = self.shared.borrow();
                eprintln!("{} peers do not have what they should", shared.missing);
                return None;
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
    let stream = loop {
        if let Some(stream) = handshake(peer, asn).await {
            break stream;
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
                Ok(0) | Err(_) => return,
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
    let Ok(Message::Update(update)) = Message::decode(message, context) else {
        panic!("peer {peer}: the device sent what cannot be read");
    };
    let mut shared = shared.borrow_mut();
    let shared = &mut *shared;
    let Heard {
        has, count, wanted, ..
    } = &mut shared.heard[peer];
    let mut set = |prefix, there: bool| {
        let Some(number) = routes.number(prefix) else {
            return;
        };
        let (word, bit) = (&mut has[number / 64], 1_u64 << (number % 64));
        if (*word & bit != 0) != there {
            *word ^= bit;
            *count = if there { *count + 1 } else { *count - 1 };
        }
    };
    for list in update.withdrawals() {
        list.for_each(|nlri| set(nlri.prefix, false));
    }
    for announcement in update.announcements() {
        announcement.prefixes.for_each(|nlri| set(nlri.prefix, true));
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

async fn handshake(peer: usize, asn: u32) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address(peer).into(), 0)).unwrap();
    let mut stream = socket.connect(SocketAddr::new(DEVICE.into(), 179)).await.ok()?;
    stream.set_nodelay(true).unwrap();
    let mut out = BytesMut::new();
    let capabilities = vec![
        Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
        Capability::RouteRefresh,
    ];
    Open::new(asn, 240, address(peer), capabilities).encode(&mut out);
    stream.write_all(&out).await.ok()?;
    for kind in [1, 4] {
        let mut header = [0; HEADER_LENGTH];
        stream.read_exact(&mut header).await.ok()?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length - HEADER_LENGTH];
        stream.read_exact(&mut body).await.ok()?;
        if header[18] != kind {
            return None;
        }
        if kind == 1 {
            let mut out = BytesMut::new();
            encode_keepalive(&mut out);
            stream.write_all(&out).await.ok()?;
        }
    }
    Some(stream)
}
