//! `splitrpc ping`.

use std::time::Duration;

use clap::Args;

use crate::{Failed, Reach, Summary};

/// Pause between two pings.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer that takes longer is lost, where the network may lose it.
const LOST_AFTER: Duration = Duration::from_secs(1);

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
            let peer = client.connection().peer_addr();
            match client.ping_once(LOST_AFTER)? {
                Some(time) => {
                    say!("{peer}: {n}: {:.1} us", time.as_nanos() as f64 / 1e3);
                    times.push(time);
                }
                None => say!("{peer}: {n}: no answer within {:?}", LOST_AFTER.min(self.reach.timeout())),
            }
        }
        let answered = times.len();
        let lost = self.count as usize - answered;
        crate::show(format_args!("{} sent, {answered} answered, {lost} lost", self.count));
        match Summary::of(times) {
            Some(summary) => say!(": {summary}"),
            None => {
                say!("");
                return Err(Failed::Silent);
            }
        }
        Ok(())
    }
}
