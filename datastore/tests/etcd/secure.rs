//! Passwords, tokens that expire, certificates of both sides, and files that change.

use std::fs;
use std::time::Duration;

use datastore::{Error, Expect};
use etcd_client::{Client, PermissionType};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::server::{Servers, until, write};

pub(crate) async fn a_token_that_expires_is_renewed() {
    let servers = Servers::start_with(1, "http", &["--auth-token-ttl", "1"]).await;
    let mut client = Client::connect(["127.0.0.1:2379"], None).await.expect("client");
    for (user, secret, role) in [("root", "wurzel", "root"), ("margay", "geheim", "ours")] {
        if role != "root" {
            client.role_add(role).await.expect("role");
            let ours = etcd_client::Permission::new(PermissionType::Readwrite, "/calico/").with_prefix();
            client.role_grant_permission(role, ours).await.expect("grant");
        } else {
            client.role_add(role).await.expect("role");
        }
        client.user_add(user, secret, None).await.expect("user");
        client.user_grant_role(user, role).await.expect("grant");
    }
    client.auth_enable().await.expect("auth");

    let password = "/mnt/password";
    fs::write(password, "geheim\n").expect("file");
    let address = |user: &str| servers.address(&format!("username={user}&password-file={password}"));
    let store = datastore::open(&address("margay")).await.expect("open");
    let first = until("written", || write(&*store, "/calico/a", "1")).await;
    let mut watch = store.watch("/calico/", first).await.expect("watch");
    // A simple token lives its second from the last time it was used.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let second = store
        .put("/calico/a", b"2".to_vec(), Expect::ModRevision(first))
        .await;
    let second = second.expect("a token that has expired costs nobody a write");
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    let mut late = store
        .watch("/calico/", first)
        .await
        .expect("a watch with a token that has expired");
    for watch in [&mut watch, &mut late] {
        loop {
            match tokio::time::timeout(crate::server::PATIENCE, watch.next())
                .await
                .expect("silent")
            {
                Some(datastore::WatchItem::Batch(batch)) if batch.is_progress() => {}
                Some(datastore::WatchItem::Batch(batch)) => break assert_eq!(batch.revision, second),
                item => panic!("{item:?}"),
            }
        }
    }
    // Others' keys are others'.
    let foreign = store.get("/elsewhere").await;
    assert!(matches!(foreign, Err(Error::Invalid { .. })), "{foreign:?}");

    let anonymous = datastore::open(&servers.address("")).await.expect("open");
    let refused = anonymous.get("/calico/a").await.expect_err("no user").to_string();
    assert!(refused.contains("ETCD_USERNAME"), "{refused}");
    fs::write(password, "falsch\n").expect("file");
    let wrong = datastore::open(&address("margay")).await.expect("open");
    let refused = wrong
        .get("/calico/a")
        .await
        .expect_err("wrong password")
        .to_string();
    assert!(!refused.contains("falsch"), "{refused}");
    // The handle that works goes on with what it has, and takes a new password once it is good.
    assert!(store.get("/calico/a").await.expect("get").is_some());
    client = Client::connect(
        ["127.0.0.1:2379"],
        Some(etcd_client::ConnectOptions::new().with_user("root", "wurzel")),
    )
    .await
    .expect("root");
    client
        .user_change_password("margay", "neues-geheimnis")
        .await
        .expect("password");
    fs::write(password, "neues-geheimnis\n").expect("file");
    until("read with the new password", async || {
        store.get("/calico/a").await.ok()
    })
    .await;
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("ca"))
    }

    /// Writes a certificate for this machine's loopback and its key.
    fn issue(&self, name: &str) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("params");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.0).expect("certificate");
        fs::write(format!("/mnt/{name}.pem"), certificate.pem()).expect("file");
        fs::write(format!("/mnt/{name}-key.pem"), key.serialize_pem()).expect("file");
    }

    fn publish(&self, name: &str) {
        fs::write(format!("/mnt/{name}.pem"), self.0.pem()).expect("file");
    }
}

pub(crate) async fn certificates_are_checked_both_ways_and_reloaded() {
    let old = Authority::new();
    old.publish("ca");
    old.issue("server");
    old.issue("client");
    let mut servers = Servers::start_with(
        1,
        "https",
        &[
            "--cert-file=/mnt/server.pem",
            "--key-file=/mnt/server-key.pem",
            "--client-cert-auth",
            "--trusted-ca-file=/mnt/ca.pem",
        ],
    )
    .await;
    let address = servers.address("cacert=/mnt/ca.pem&cert=/mnt/client.pem&key=/mnt/client-key.pem");
    servers.wait_until_ready(&address).await;
    let store = datastore::open(&address).await.expect("open");
    until("written", || write(&*store, "/tls/a", "1")).await;

    // Who has no certificate, or trusts another authority, gets nowhere.
    let nobody = datastore::open(&servers.address("cacert=/mnt/ca.pem"))
        .await
        .expect("open");
    assert!(nobody.get("/tls/a").await.is_err(), "no client certificate");
    let new = Authority::new();
    new.publish("other");
    let query = "cacert=/mnt/other.pem&cert=/mnt/client.pem&key=/mnt/client-key.pem";
    let stranger = datastore::open(&servers.address(query)).await.expect("open");
    let refused = stranger
        .get("/tls/a")
        .await
        .expect_err("another authority")
        .to_string();
    assert!(refused.contains("certificate"), "{refused}");
    let missing = datastore::open(&servers.address("cacert=/mnt/none.pem"))
        .await
        .expect("open");
    let refused = missing.get("/tls/a").await.expect_err("no such file").to_string();
    assert!(refused.contains("/mnt/none.pem"), "{refused}");

    // A key that does not fit its certificate, as between the writing of one file and of the other.
    let key = fs::read("/mnt/client-key.pem").expect("file");
    fs::write("/mnt/client-key.pem", "no key\n").expect("file");
    assert!(store.get("/tls/a").await.expect("what works is kept").is_some());
    fs::write("/mnt/client-key.pem", key).expect("file");

    // Everything is issued anew by another authority; the server starts again, the handle is the same.
    new.publish("ca");
    new.issue("server");
    new.issue("client");
    servers.kill(0);
    servers.start_member(0);
    let entry = until("read with new certificates", async || {
        store.get("/tls/a").await.ok()
    })
    .await;
    assert_eq!(&*entry.expect("exists").value, b"1");
}
