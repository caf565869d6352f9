//! Both ends together: the shard on a loop of its own, the other side on tokio's thread.

use std::future::Future;
use std::pin::pin;
use std::task::Context;
use std::time::Duration;

use super::*;
use crate::rt;

const PATIENCE: Duration = Duration::from_secs(20);

fn run(test: impl Future<Output = ()> + 'static) {
    rt::run(async move { rt::timeout(PATIENCE, test).await.expect("it ends in time") }).unwrap();
}

/// Polls a call so far that its request is over there.
fn begin<F: Future>(call: std::pin::Pin<&mut F>) {
    assert!(call.poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[test]
fn calls_go_over_and_come_back_each_to_its_caller() {
    run(async {
        let (port, foreign) = bridge::<u64, u64>(64);
        rt::spawn(port.clone().receive());
        spawn_beside(async move {
            while let Some((number, ticket)) = foreign.next().await {
                // Out of order: every third by a task of its own.
                match number % 3 {
                    0 => drop(tokio::spawn(async move { ticket.complete(number * 2) })),
                    _ => ticket.complete(number * 2),
                }
            }
        })
        .unwrap();
        let (done, ended) = (Rc::new(Cell::new(0)), Rc::new(rt::Signal::default()));
        for first in 0..16 {
            let (port, done, ended) = (port.clone(), done.clone(), ended.clone());
            rt::spawn(async move {
                for round in 0..500 {
                    let number = first * 1000 + round;
                    assert_eq!(port.call(number).await, Ok(number * 2));
                }
                done.set(done.get() + 1);
                ended.set();
            });
        }
        // Not by turns of the loop: one that never sleeps does not hear of other threads.
        while done.get() < 16 {
            ended.wait().await;
        }
        assert_eq!(port.facts(), BridgeFacts { calls: 8000, ..BridgeFacts::default() });
    });
}

#[test]
fn what_is_too_much_is_refused_until_something_is_completed() {
    run(async {
        let (port, foreign) = bridge::<u8, u8>(2);
        rt::spawn(port.clone().receive());
        let (mut one, mut two) = (pin!(port.call(1)), pin!(port.call(2)));
        begin(one.as_mut());
        begin(two.as_mut());
        assert_eq!(port.call(3).await, Err(Failure::Full));
        let (request, ticket) = foreign.next().await.unwrap();
        assert_eq!(request, 1);
        ticket.complete(10);
        assert_eq!(one.await, Ok(10));
        let mut four = pin!(port.call(4));
        begin(four.as_mut());
        assert_eq!((port.facts().refused, port.facts().under_way), (1, 2));
    });
}

#[test]
fn a_late_completion_is_dropped_and_counted_and_answers_nobody_else() {
    run(async {
        let (port, foreign) = bridge::<u8, u8>(2);
        rt::spawn(port.clone().receive());
        {
            let mut leaves = pin!(port.call(1));
            begin(leaves.as_mut());
        }
        // The same slot, another generation.
        let mut stays = pin!(port.call(2));
        begin(stays.as_mut());
        assert_eq!(port.call(3).await, Err(Failure::Full), "the first is still under way there");
        let (_, first) = foreign.next().await.unwrap();
        let (_, second) = foreign.next().await.unwrap();
        assert_eq!((first.slot, first.generation + 1), (second.slot, second.generation));
        first.complete(10);
        while port.facts().late == 0 {
            rt::yield_now().await;
        }
        second.complete(20);
        assert_eq!(stays.await, Ok(20));
        assert_eq!((port.facts().late, port.facts().under_way), (1, 0));
    });
}

#[test]
fn a_request_that_is_dropped_and_a_side_that_is_gone_are_told() {
    run(async {
        let (port, foreign) = bridge::<u8, u8>(4);
        rt::spawn(port.clone().receive());
        let (mut dropped, mut waits) = (pin!(port.call(1)), pin!(port.call(2)));
        begin(dropped.as_mut());
        begin(waits.as_mut());
        drop(foreign.next().await.unwrap());
        assert_eq!(dropped.await, Err(Failure::Lost));
        drop(foreign);
        assert_eq!(waits.await, Err(Failure::Lost));
        assert_eq!(port.call(3).await, Err(Failure::Lost));
        assert_eq!(port.facts().under_way, 0);
    });
}

#[test]
fn the_other_side_hears_that_the_shard_has_left() {
    let (told, hears) = std::sync::mpsc::channel();
    run(async move {
        let (port, foreign) = bridge::<u8, u8>(4);
        rt::spawn(port.clone().receive());
        spawn_beside(async move {
            let none = foreign.next().await.is_none();
            let _ = told.send(none);
        })
        .unwrap();
        rt::yield_now().await;
        drop(port);
        assert!(hears.recv_timeout(PATIENCE).unwrap());
    });
}

#[test]
fn a_request_may_go_over_by_a_queue_of_the_other_side() {
    run(async {
        let (port, _foreign) = bridge::<(), u64>(1);
        rt::spawn(port.clone().receive());
        let (put, take) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (number, ticket) in take {
                let ticket: Ticket<(), u64> = ticket;
                ticket.complete(number * 2);
            }
        });
        for number in 0..100 {
            let answer = port.hand_over(|ticket| put.send((number, ticket)).unwrap()).await;
            assert_eq!(answer, Ok(number * 2));
        }
        assert_eq!(port.hand_over(drop).await, Err(Failure::Lost));
    });
}
