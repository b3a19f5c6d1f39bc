//! What is looked at for each feature.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use bgpd::Family;
use bgpd::config::Secret;
use bgpd::speaker::Clear;

use crate::ours::{All, apart, prefix, prefix6};
use crate::routers::{self, Inside, OWN_V4, OWN_V6, Router, SESSIONS};
use crate::{Feature, until};

struct Bench<'a> {
    router: &'static dyn Router,
    inside: Inside<'a>,
    process: Option<Child>,
    killed: Option<Child>,
    ours: All,
}

pub(crate) fn run(router: &'static dyn Router, namespace: u32, directory: &Path, results: &Path) {
    let inside = Inside { namespace, directory };
    let process = Some(routers::start(router, &inside, false));
    let ours = All::start(|feature| router.cannot(feature).is_some());
    let mut bench = Bench {
        router,
        inside,
        process,
        killed: None,
        ours,
    };
    let begun = Instant::now();
    for (feature, name) in Feature::ALL {
        if router.cannot(feature).is_some() {
            continue;
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| bench.check(feature)));
        let fault = match outcome {
            Ok(()) => String::new(),
            Err(panic) => {
                let text = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or(panic.downcast_ref::<&str>().copied());
                format!("{}\n{}", text.unwrap_or("a panic"), bench.state())
            }
        };
        eprintln!("{:6.2} s {name} {fault}", begun.elapsed().as_secs_f32());
        fs::write(results.join(format!("{feature:?}")), fault).unwrap();
    }
    for mut child in [bench.process.take(), bench.killed.take()].into_iter().flatten() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Bench<'_> {
    fn routes(&self, prefix: &str) -> String {
        self.router.routes(&self.inside, prefix)
    }

    fn knows(&self, prefix: &str) -> bool {
        let host = prefix.strip_suffix("/32").or(prefix.strip_suffix("/128"));
        let routes = self.routes(prefix);
        routes.contains(prefix) || host.is_some_and(|host| routes.contains(&format!("{host} ")))
    }

    fn wait_known(&self, prefix: &str) {
        until(&format!("the router knows {prefix}"), || self.knows(prefix));
    }

    fn wait_has(&self, who: &str, prefix: &str) {
        until(&format!("{who} has {prefix}"), || self.ours.get(who).has(prefix));
    }

    /// For a failure: what everybody knows.
    fn state(&self) -> String {
        let mut text = String::new();
        for session in &SESSIONS {
            if self.ours.speakers.contains_key(session.name) {
                let neighbor = self.ours.neighbor(session.name);
                text += &format!(
                    "{}: {:?} {:?}\n",
                    session.name, neighbor.summary.state, neighbor.summary.last_error
                );
            }
        }
        text + &routers::said(&self.inside)
    }

    fn check(&mut self, feature: Feature) {
        match feature {
            Feature::External => self.external(),
            Feature::WeReflect => self.we_reflect(),
            Feature::TheyReflect => self.they_reflect(),
            Feature::Md5 => self.md5(),
            Feature::Communities => self.communities(),
            Feature::AddPath => self.add_path(),
            Feature::ExtendedNextHop => self.extended_next_hop(),
            Feature::Refresh => self.refresh(),
            Feature::EnhancedRefresh => self.enhanced_refresh(),
            Feature::Roles => {
                until("the session is up", || self.ours.up("outside"));
                assert_eq!(self.ours.neighbor("outside").role.as_deref(), Some("customer"));
            }
            Feature::LongLived => {
                until("the session is up", || self.ours.up("outside"));
                let restart = self.ours.neighbor("outside").graceful_restart.unwrap();
                assert_eq!(restart.long_lived.get(&Family::Ipv4Unicast), Some(&600));
            }
            Feature::WeRestart => self.we_restart(),
            Feature::TheyRestart => self.they_restart(),
        }
    }

    fn external(&self) {
        self.wait_has("outside", OWN_V4);
        self.wait_has("outside", OWN_V6);
        assert_eq!(self.ours.get("outside").hops(OWN_V4), ["10.77.0.2"]);
        assert_eq!(self.ours.get("outside").hops(OWN_V6), ["fd77::2"]);
        let path = self.ours.paths("outside", OWN_V4).remove(0);
        assert_eq!(path.as_path, "65002");
        self.wait_known(&prefix("outside", 1));
        self.wait_known(&prefix6("outside"));
        let routes = self.routes(&prefix("outside", 1));
        assert!(
            routes.contains("65001") && routes.contains("10.77.0.1"),
            "{routes}"
        );
        let routes = self.routes(&prefix6("outside"));
        assert!(routes.contains("fd77::1"), "{routes}");
    }

    /// The router as a client: what `source1` says reaches it, and what it says reaches `source1`.
    fn we_reflect(&self) {
        for own in [OWN_V4, OWN_V6] {
            self.wait_has("source1", own);
        }
        assert_eq!(self.ours.get("source1").hops(OWN_V4), ["10.77.0.2"]);
        for prefix in [prefix("source1", 1), prefix6("source1")] {
            self.wait_known(&prefix);
        }
        // Reflected: who brought it in, and through whom it came.
        let routes = self.routes(&prefix("source1", 1));
        for word in ["10.77.0.12", "10.77.0.11"] {
            assert!(routes.contains(word), "no {word} in {routes}");
        }
    }

    /// The router as our reflector: what `client1` says reaches `client2`.
    fn they_reflect(&self) {
        for (from, to) in [("client1", "client2"), ("client2", "client1")] {
            for prefix in [prefix(from, 1), prefix6(from)] {
                self.wait_has(to, &prefix);
            }
        }
        let paths = self.ours.paths("client2", &prefix("client1", 1));
        let reflected = paths.iter().any(|path| {
            path.originator_id == Some([10, 77, 0, 21].into())
                && path.cluster_list == [std::net::Ipv4Addr::new(10, 77, 0, 2)]
        });
        assert!(reflected, "{paths:#?}");
        assert_eq!(
            self.ours.get("client2").hops(&prefix("client1", 1)),
            ["10.77.0.21"]
        );
        assert_eq!(self.ours.get("client2").hops(&prefix6("client1")), ["fd77::21"]);
    }

    fn communities(&self) {
        self.wait_has("outside", OWN_V4);
        let path = self.ours.paths("outside", OWN_V4).remove(0);
        assert_eq!(path.communities, ["65002:7", "65002:1:2", "rt:65002:9"]);
        let prefix = prefix("outside", 1);
        self.wait_known(&prefix);
        let routes = self.routes(&prefix);
        let shown = self.router.shown();
        for part in [shown.standard, shown.large, shown.extended] {
            assert!(routes.contains(part), "no {part} in {routes}");
        }
    }

    fn add_path(&self) {
        until("both paths came, by different names", || {
            let paths = self.ours.paths("reflector", "10.65.200.1/32");
            let ids: std::collections::BTreeSet<_> = paths.iter().filter_map(|path| path.path_id).collect();
            ids.len() == 2
        });
        let neighbor = self.ours.neighbor("reflector");
        assert!(neighbor.add_path_receive.contains(&Family::Ipv4Unicast));
        assert!(neighbor.add_path_send.contains(&Family::Ipv4Unicast));
        until("the router knows both paths", || {
            let routes = self.routes("10.65.201.1/32");
            routes.contains("10.77.0.12") && routes.contains("10.77.0.13")
        });
    }

    fn extended_next_hop(&self) {
        self.wait_has("six", OWN_V4);
        assert_eq!(self.ours.get("six").hops(OWN_V4), ["fd77::2"]);
        assert!(self.ours.neighbor("six").extended_next_hop);
        let prefix = prefix("six", 1);
        self.wait_known(&prefix);
        let routes = self.routes(&prefix);
        assert!(routes.contains("fd77::41"), "{routes}");
    }

    fn refresh(&self) {
        self.wait_has("outside", OWN_V4);
        let ours = self.ours.get("outside");
        let neighbor = self.ours.neighbor("outside");
        assert!(neighbor.route_refresh);
        let (before, losses) = (neighbor.summary.messages_in, ours.losses(OWN_V4));
        let cleared = self
            .ours
            .runtime
            .block_on(ours.handle.clear("router", Clear::In))
            .unwrap();
        assert!(cleared);
        if self.router.answers_refresh() {
            self.more_messages("outside", before, 2);
        }
        let before = self.ours.neighbor("outside").summary.messages_out;
        if self.router.refresh(&self.inside, "outside") {
            let soon = Instant::now() + Duration::from_secs(15);
            until("we repeat ours", || {
                assert!(Instant::now() < soon, "we do not repeat ours");
                self.ours.neighbor("outside").summary.messages_out > before
            });
        }
        assert!(self.knows(&prefix("outside", 1)));
        assert_eq!(ours.losses(OWN_V4), losses);
    }

    /// A keepalive comes every half minute, later than patience allows for here.
    fn more_messages(&self, name: &str, before: u64, more: u64) {
        let soon = Instant::now() + Duration::from_secs(15);
        until("messages came", || {
            let now = self.ours.neighbor(name).summary.messages_in;
            assert!(Instant::now() < soon, "{} messages, not {more}", now - before);
            now >= before + more
        });
    }

    fn enhanced_refresh(&self) {
        self.wait_has("client1", OWN_V4);
        let ours = self.ours.get("client1");
        assert!(self.ours.neighbor("client1").enhanced_refresh);
        let losses = ours.losses(OWN_V4);
        let before = self.ours.neighbor("client1").summary.messages_in;
        self.ours
            .runtime
            .block_on(ours.handle.clear("router", Clear::In))
            .unwrap();
        // Two marks a family, and what is between them.
        self.more_messages("client1", before, 6);
        // Between the marks its routes wait to be repeated; after the second none does.
        let mut quiet = 0;
        until("nothing waits to be repeated any more", || {
            quiet = if self.ours.neighbor("client1").stale == 0 {
                quiet + 1
            } else {
                0
            };
            quiet > 10
        });
        assert!(ours.has(OWN_V4) && ours.has(OWN_V6));
        assert_eq!(ours.losses(OWN_V4), losses);
    }

    fn md5(&self) {
        until("the session is up with the key", || self.ours.up("outside"));
        let ours = self.ours.get("outside");
        let mut config = ours.config.clone();
        config.peers[0].password = Some(Secret::new("another"));
        let reconfigure = |config| self.ours.runtime.block_on(ours.handle.reconfigure(config));
        reconfigure(config).unwrap();
        until("the session is reset", || !self.ours.up("outside"));
        let wrong = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < wrong {
            assert!(!self.ours.up("outside"), "up with another key");
            std::thread::sleep(Duration::from_millis(50));
        }
        reconfigure(ours.config.clone()).unwrap();
        until("the session is back with the key", || self.ours.up("outside"));
    }

    /// TCP connections between the router and one of ours, as the router's kernel has them.
    fn connected(&self, address: [u8; 4]) -> bool {
        let table = format!("/proc/{}/net/tcp", self.inside.namespace);
        let table = fs::read_to_string(table).unwrap();
        let far = format!("{:08X}:", u32::from_le_bytes(address));
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(2);
            words.next().is_some_and(|to| to.starts_with(&far)) && words.next() == Some("01")
        })
    }

    fn we_restart(&mut self) {
        let (kept, gone, six) = (prefix("killed", 1), prefix("killed", 2), prefix6("killed"));
        let mut first = apart("killed");
        for prefix in [&kept, &gone, &six] {
            self.wait_known(prefix);
        }
        self.wait_has("outside", &kept);
        let losses = self.ours.get("outside").losses(&kept);
        first.kill().unwrap();
        first.wait().unwrap();
        until("its end of the connection is closed", || {
            !self.connected([10, 77, 0, 31])
        });
        for _ in 0..20 {
            for prefix in [&kept, &gone, &six] {
                assert!(self.knows(prefix), "{prefix} is gone");
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        self.killed = Some(apart("killed again"));
        // What is repeated never went; what is not goes with our End-of-RIB.
        until("it lets go of what was not repeated", || {
            assert!(self.knows(&kept) && self.knows(&six), "{}", self.routes(&kept));
            !self.knows(&gone)
        });
        assert_eq!(self.ours.get("outside").losses(&kept), losses);
    }

    fn they_restart(&mut self) {
        let with_session = ["outside", "reflector", "client1", "client2", "six"];
        until("everybody is up", || {
            with_session.iter().all(|name| self.ours.up(name))
        });
        let watched: Vec<(&str, &str)> = with_session
            .iter()
            .chain(&["source1"])
            .flat_map(|name| [(*name, OWN_V4), (*name, OWN_V6)])
            .filter(|(name, own)| *name != "six" || *own == OWN_V6 || self.ours.get(name).has(own))
            .collect();
        for (name, own) in &watched {
            self.wait_has(name, own);
        }
        let losses = |bench: &Self| -> Vec<usize> {
            let each = watched.iter().map(|(name, own)| bench.ours.get(name).losses(own));
            each.collect()
        };
        let before = losses(self);
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        until("everybody noticed", || {
            with_session.iter().all(|name| !self.ours.up(name))
        });
        assert_eq!(losses(self), before, "{watched:?}");
        self.process = Some(routers::start(self.router, &self.inside, true));
        until("everybody is up again and has all", || {
            with_session.iter().all(|name| {
                let neighbor = self.ours.neighbor(name);
                self.ours.up(name)
                    && neighbor.stale == 0
                    && neighbor.by_family.values().all(|family| family.end_of_rib)
            })
        });
        assert_eq!(losses(self), before, "{watched:?}");
    }
}
