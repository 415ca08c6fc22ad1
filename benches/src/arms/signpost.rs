//! Where a card is, as its host agent's machine tells it: clients reach the card, and know the machine that it is in.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::Located;

/// Bytes of what is told at most.
const MOST: u64 = 1 << 10;
const PATIENCE: Duration = Duration::from_secs(2);

/// What whoever connects is told, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    /// Where the card listens. Where that is any of its addresses, it is at the signpost's own.
    card: SocketAddr,
    /// A software BlueField stands in for it.
    emulated: bool,
    /// What tells the host agent's machine, since it was started, from all others.
    boot: String,
}

/// Tells everybody who connects to `listener` where the card is, from now on.
pub(super) fn stand(listener: TcpListener, card: SocketAddr, emulated: bool) -> anyhow::Result<()> {
    let told = serde_json::to_vec(&Told { card, emulated, boot: boot() })?;
    let tell = move |mut to: TcpStream| -> std::io::Result<()> {
        to.set_write_timeout(Some(PATIENCE))?;
        to.write_all(&told)
    };
    std::thread::Builder::new().name("signpost".into()).spawn(move || {
        // Who goes away meanwhile has not lost anything.
        listener.incoming().flatten().for_each(|to| drop(tell(to)));
    })?;
    Ok(())
}

/// Where the card is that a signpost tells of.
///
/// # Errors
/// Where nothing is told, and where the card is in this machine: what a client there would measure is no SmartNIC's.
pub(crate) fn read(signpost: SocketAddr) -> anyhow::Result<Located> {
    let stream = TcpStream::connect_timeout(&signpost, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes)?;
    let told: Told = serde_json::from_slice(&bytes).context("it does not tell where its card is")?;
    follow(&told, signpost, &boot())
}

fn follow(told: &Told, signpost: SocketAddr, here: &str) -> anyhow::Result<Located> {
    ensure!(
        told.emulated || told.boot != here,
        "the card is in this machine. A client on the card's own host reaches it over no network, so its figures are no SmartNIC's: run \
         compare on another machine, or leave the arm out with --arms"
    );
    let mut card = told.card;
    if card.ip().is_unspecified() {
        card.set_ip(signpost.ip());
    }
    Ok(Located { address: card, emulated: told.emulated })
}

/// The same in all of a machine's containers, and another after each start.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(card: &str, emulated: bool, boot: &str) -> Told {
        Told { card: card.parse().unwrap(), emulated, boot: boot.to_owned() }
    }

    #[test]
    fn a_client_in_the_cards_own_machine_is_refused() {
        let signpost = "10.0.0.1:7477".parse().unwrap();
        let here = |told: Told| follow(&told, signpost, "here");
        let refused = here(told("10.0.0.9:7311", false, "here")).unwrap_err().to_string();
        assert!(refused.contains("no SmartNIC's"), "{refused}");
        let there = here(told("10.0.0.9:7311", false, "there")).unwrap();
        assert_eq!(there, Located { address: "10.0.0.9:7311".parse().unwrap(), emulated: false });
        // What is emulated is called so wherever it is.
        let emulated = here(told("0.0.0.0:7311", true, "here")).unwrap();
        assert_eq!(emulated, Located { address: "10.0.0.1:7311".parse().unwrap(), emulated: true });
    }

    #[test]
    fn who_asks_is_told_and_nonsense_is_not_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        stand(listener, "127.0.0.1:9".parse().unwrap(), true).unwrap();
        assert_eq!(read(at).unwrap().address, "127.0.0.1:9".parse().unwrap());
        assert!(serde_json::from_slice::<Told>(b"{}").is_err());
    }
}
