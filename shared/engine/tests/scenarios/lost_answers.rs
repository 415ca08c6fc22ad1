//! Answers, errors and acknowledgements may be lost; requests without a deadline end all the same.

use splitrpc_engine::{ClientConfig, MS, SEC, ServerConfig};
use splitrpc_wire::{Kind, Status};

use crate::rig::pair::{Pair, client_config, lose, pair};
use crate::rig::{Ask, config};

fn ends_within(pair: &mut Pair<'_, '_>, requests: usize, nanos: u64) {
    let until = pair.now() + nanos;
    pair.run_while(until, |p| p.ended().0 + p.ended().1.len() < requests);
    let (answered, failed) = pair.ended();
    assert_eq!(answered + failed.len(), requests, "{failed:?}");
    assert!(!failed.contains(&Status::ConnectionLost), "the session was lost");
}

#[test]
fn an_error_frame_is_lost_again_and_again() {
    pair(&ServerConfig { keep_reply: SEC, ..config() }, &client_config(), |pair| {
        pair.model = Box::new(|_| (0, Err(Status::ModelFailed)));
        let mut lost = 0;
        pair.wire = lose(false, Kind::Error, move |_| {
            lost += 1;
            lost <= 2
        });
        pair.ask(&Ask::rows(1));
        ends_within(pair, 1, SEC);
        assert_eq!(pair.ended().1, [Status::ModelFailed]);
    });
}

#[test]
fn other_traffic_does_not_hide_that_an_error_was_lost() {
    pair(&config(), &client_config(), |pair| {
        pair.model = Box::new(|n| (0, if n == 0 { Err(Status::ModelFailed) } else { Ok(100) }));
        pair.wire = lose(false, Kind::Error, |way| way.number < 10);
        pair.ask(&Ask::rows(1));
        pair.run(MS);
        for _ in 0..200 {
            pair.ask(&Ask::rows(1));
            pair.run(5 * MS);
        }
        assert_eq!(pair.ended().0, 200);
        assert_eq!(pair.ended().1, [Status::ModelFailed]);
    });
}

#[test]
fn a_model_takes_longer_than_the_client_bears_silence() {
    pair(&config(), &client_config(), |pair| {
        pair.model = Box::new(|_| (30 * SEC, Ok(100)));
        pair.ask(&Ask::rows(1));
        ends_within(pair, 1, 31 * SEC);
        assert_eq!(pair.ended().0, 1);
        let frames = pair.log.iter().filter(|w| w.up).count();
        assert!(frames < 100, "{frames} frames to hear that it is not done");
    });
}

#[test]
fn a_client_that_bears_little_silence_waits_for_a_model_all_the_same() {
    let hasty = ClientConfig { silence_limit: SEC / 2, ..client_config() };
    pair(&config(), &hasty, |pair| {
        pair.model = Box::new(|_| (10 * SEC, Ok(100)));
        pair.ask(&Ask::rows(1));
        ends_within(pair, 1, 11 * SEC);
        assert_eq!(pair.ended().0, 1);
    });
}

#[test]
fn a_reply_is_given_up_while_the_client_cannot_be_reached() {
    pair(&config(), &client_config(), |pair| {
        let deaf_until = pair.now() + SEC;
        pair.wire = Box::new(move |way| !way.up && way.at < deaf_until);
        pair.ask(&Ask::rows(1));
        ends_within(pair, 1, 4 * SEC);
        assert_eq!(pair.ended().1, [Status::ReplyGone]);
        pair.rig.assert_empty();
    });
}

#[test]
fn every_acknowledgement_is_lost_for_a_while() {
    for up in [true, false] {
        pair(&config(), &client_config(), |pair| {
            pair.model = Box::new(|_| (0, Ok(60_000)));
            let heals = pair.now() + 2 * SEC;
            pair.wire = Box::new(move |way| way.up == up && way.header.kind == Kind::Ack && way.at < heals);
            let mut asked = 0;
            while asked < 40 {
                while pair.client.open_requests() < 4 && asked < 40 {
                    pair.ask(&Ask::bytes(60_000));
                    asked += 1;
                }
                let (before, until) = (pair.client.open_requests(), pair.now() + 4 * SEC);
                pair.run_while(until, |p| p.client.open_requests() == before);
                assert!(pair.client.open_requests() < before, "stuck after {asked} requests (up: {up})");
            }
            ends_within(pair, 40, 4 * SEC);
        });
    }
}

#[test]
fn the_first_frame_is_lost_as_often_as_not() {
    pair(&config(), &client_config(), |pair| {
        // Without its manifest the server has no use for the rest of this one, and does not confirm it.
        let mut lost = 0;
        pair.wire = lose(true, Kind::Request, move |way| {
            lost += u32::from(way.header.offset == 0);
            way.header.offset == 0 && lost <= 3
        });
        pair.ask(&Ask::bytes(100_000));
        ends_within(pair, 1, SEC);
        assert_eq!(pair.ended().0, 1);
    });
}

#[test]
fn what_was_lost_goes_before_what_is_new() {
    // A window for all of it, so that the large one never waits.
    pair(&ServerConfig { receive_window: 4 << 20, ..config() }, &client_config(), |pair| {
        let mut lost = false;
        pair.wire =
            lose(true, Kind::Request, move |way| way.header.request == 1 && !std::mem::replace(&mut lost, true));
        // In records one after the other, so that the large one is under way when the small one is found lost.
        let small = pair.ask(&Ask::rows(1));
        pair.log.clear();
        pair.ask(&Ask::bytes(1 << 20));
        ends_within(pair, 2, SEC);
        let of =
            |n: u64| pair.log.iter().enumerate().filter(move |(_, w)| w.up && w.header.request == n).map(|(at, _)| at);
        assert_eq!((of(1).count(), small.index), (2, 0), "the small one was to be lost once");
        let (again, last_new) = (of(1).max().unwrap(), of(2).max().unwrap());
        assert!(again + 100 < last_new, "it came after all of the other");
    });
}

#[test]
fn the_question_after_a_lost_error_is_lost_too() {
    pair(&config(), &client_config(), |pair| {
        pair.model = Box::new(|_| (0, Err(Status::ModelFailed)));
        let (mut errors, mut questions) = (0, 0);
        pair.wire = Box::new(move |way| match (way.up, way.header.kind) {
            (false, Kind::Error) => {
                errors += 1;
                errors == 1
            }
            (true, Kind::Request) => {
                questions += 1;
                questions == 2
            }
            _ => false,
        });
        pair.ask(&Ask::rows(1));
        // It is repeated like data, long before the next is due.
        ends_within(pair, 1, 150 * MS);
        assert_eq!(pair.ended().1, [Status::ModelFailed]);
    });
}
