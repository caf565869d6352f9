//! memstore's subscribers: one that is slow holds a bounded amount, holds nobody up, and is told what it has lost.

use prism_adapters::conformance::{Client, Direct, Failure, Opened};
use prism_adapters::memory::Memstore;
use prism_proto::catalogue::Method;
use prism_proto::prism::pubsub::v1 as pubsub;
use prism_proto::prism::r#type::v1::Message;
use prost::Message as _;

async fn subscribe(client: &Direct<Memstore>) -> impl Opened + '_ {
    let request = pubsub::SubscribeRequest {
        namespace: client.namespace().to_owned(),
        topic: "t".to_owned(),
        ..Default::default()
    };
    let mut opened =
        client.open(Method::PUBSUB_SUBSCRIBE, request.encode_to_vec()).await.expect("subscribed");
    assert!(opened.next().await.expect("it stands").is_some());
    opened
}

async fn publish(client: &Direct<Memstore>, bytes: usize) {
    let request = pubsub::PublishRequest {
        namespace: client.namespace().to_owned(),
        topic: "t".to_owned(),
        message: Some(Message { payload: vec![7; bytes].into(), ..Default::default() }),
    };
    client.unary(Method::PUBSUB_PUBLISH, request.encode_to_vec()).await.expect("published");
}

/// Hears events until the end: how many there were, and why it ended.
async fn drain(opened: &mut impl Opened) -> (usize, Failure) {
    let mut count = 0;
    loop {
        match opened.next().await {
            Ok(Some(_)) => count += 1,
            Ok(None) => panic!("a gap is an error"),
            Err(failure) => return (count, failure),
        }
    }
}

fn slow(event_bytes: usize, published: usize, expected: std::ops::RangeInclusive<usize>) {
    prism_io::rt::run(async move {
        let client = Direct::new(Memstore::default());
        let mut slow = subscribe(&client).await;
        let mut quick = subscribe(&client).await;
        for _ in 0..published {
            publish(&client, event_bytes).await;
            assert!(quick.next().await.expect("it hears everything").is_some());
        }
        let (count, failure) = drain(&mut slow).await;
        assert_eq!((failure.code, &*failure.reason), (11, "SUBSCRIBER_BEHIND"));
        assert!(expected.contains(&count), "{count}");
        // Whoever subscribes again hears what comes from then on.
        let mut again = subscribe(&client).await;
        publish(&client, event_bytes).await;
        assert!(again.next().await.expect("an event").is_some());
    })
    .unwrap();
}

#[test]
fn a_slow_subscriber_holds_so_many_events() {
    slow(10, 2000, 1000..=1030);
}

#[test]
fn a_slow_subscriber_holds_so_many_bytes() {
    slow(1 << 20, 20, 3..=5);
}

#[test]
fn all_lines_of_a_shard_together_are_bounded() {
    prism_io::rt::run(async {
        let client = Direct::new(Memstore::default());
        let mut subscribers = Vec::new();
        for _ in 0..40 {
            subscribers.push(subscribe(&client).await);
        }
        for _ in 0..4 {
            publish(&client, 1_000_000).await;
        }
        let (mut behind, mut all) = (0, 0);
        for subscriber in &mut subscribers {
            // Each that still has its place is told of this one.
            let mut heard = 0;
            let lost = loop {
                if heard == 4 {
                    break false;
                }
                match subscriber.next().await {
                    Ok(_) => heard += 1,
                    Err(failure) => {
                        assert_eq!(failure.reason, "SUBSCRIBER_BEHIND");
                        break true;
                    }
                }
            };
            assert!(heard >= 1, "one event fits always");
            behind += usize::from(lost);
            all += heard;
        }
        // 40 lines of four megabytes are more than twice of what may wait: 64 MiB.
        assert!(behind > 0 && (60..=67).contains(&all), "{behind} {all}");
    })
    .unwrap();
}
