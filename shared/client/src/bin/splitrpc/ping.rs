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
        // Why the last ping failed, where more than its answer was lost.
        let (mut times, mut ended) = (Vec::new(), None);
        for n in 1..=self.count {
            if n > 1 {
                std::thread::sleep(PAUSE);
            }
            let sessions = client.sessions();
            let result = client.ping_once(LOST_AFTER);
            let peer = client.connection().peer_addr();
            if client.sessions() > sessions {
                eprintln!("splitrpc: the session was lost, and another one opened with {peer}");
            }
            ended = match result {
                Ok(Some(time)) => {
                    say!("{peer}: {n}: {:.1} us", time.as_nanos() as f64 / 1e3);
                    times.push(time);
                    None
                }
                Ok(None) => {
                    say!("{peer}: {n}: no answer within {:?}", LOST_AFTER.min(self.reach.timeout()));
                    None
                }
                Err(error) => {
                    let failed = Failed::from(error);
                    say!("{peer}: {n}: {failed}");
                    Some(failed)
                }
            };
        }
        let (sent, answered) = (self.count, times.len());
        let lost = sent as usize - answered;
        crate::show(format_args!("{sent} sent, {answered} answered, {lost} lost"));
        match Summary::of(times) {
            Some(summary) => say!(": {summary}"),
            None => say!(""),
        }
        match ended {
            Some(failed) => Err(failed),
            None if answered == 0 => Err(Failed::Silent),
            None => Ok(()),
        }
    }
}
