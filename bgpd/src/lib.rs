//! A BGP-4 speaker: wire, sessions and RIBs without I/O, and a tokio driver.
