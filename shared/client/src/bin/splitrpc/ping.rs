//! `splitrpc ping`.

use std::time::Duration;

use clap::Args;

use crate::{Failed, Reach, Summary};

/// Pause between two pings.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Args)]
pub(crate) struct Ping {
    #[command(flatten)]
    reach: Reach,
    /// How many pings.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

impl Ping {
    pub(crate) fn run(&self) -> Result<(), Failed> {
        let mut client = self.reach.connect()?;
        let mut times = Vec::new();
        for n in 1..=self.count {
            if n > 1 {
                std::thread::sleep(PAUSE);
            }
            let time = client.ping()?;
            println!("{}: {n}: {:.1} us", client.connection().peer_addr(), time.as_nanos() as f64 / 1e3);
            times.push(time);
        }
        if let Some(summary) = Summary::of(times) {
            println!("{} answered: {summary}", self.count);
        }
        Ok(())
    }
}
