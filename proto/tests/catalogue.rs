//! The catalogue says what the descriptors say, and its ids never change.

use std::collections::BTreeSet;
use std::fmt::Write;

use prism_proto::catalogue::{Access, Interface, Interfaces, Method, Model, ReplyFrom};

/// The golden text. Ids stand in logs: a line may be added, never changed or
/// removed. `UPDATE_GOLDEN=1 cargo test -p prism-proto` writes it anew.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/catalogue.txt");

fn transcript() -> String {
    let mut out = String::new();
    for method in Method::all() {
        let offered = match method.interface() {
            Some(interface) => interface.name().to_owned(),
            None => {
                let names: Vec<_> = method.needs_any().iter().map(Interface::name).collect();
                format!("any of {}", names.join(" "))
            }
        };
        write!(out, "{:>4} {} | {offered} |", method.id(), &method.path()[1..]).expect("string");
        let write = method.access() == Access::Write;
        out.push_str(if write { " write" } else { " read" });
        if let Some(number) = method.key_field() {
            write!(out, " key={number}").expect("string");
        }
        if write && method.reply_from() == ReplyFrom::Log {
            out.push_str(" reply-from-log");
        }
        for (holds, word) in [
            (write && method.idempotent(), " idempotent"),
            (method.resend(), " resend"),
            (method.client_streaming(), " client-stream"),
            (method.server_streaming(), " server-stream"),
        ] {
            out.push_str(if holds { word } else { "" });
        }
        for number in method.asks_backend() {
            write!(out, " asks-backend={number}").expect("string");
        }
        for need in method.field_needs() {
            write!(out, " {:?}->{}", need.path, need.interface).expect("string");
        }
        out.push('\n');
    }
    out
}

#[test]
fn the_catalogue_is_the_golden_one() {
    let actual = transcript();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &actual).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(GOLDEN).expect("the golden file can be read");
    for (number, (actual, expected)) in actual.lines().zip(expected.lines()).enumerate() {
        assert_eq!(actual, expected, "line {} of {GOLDEN}", number + 1);
    }
    assert_eq!(actual.lines().count(), expected.lines().count(), "lines of {GOLDEN}");
}

#[test]
fn the_api_has_its_promised_size() {
    assert_eq!(Model::all().len(), 10);
    assert_eq!(Interface::all().len(), 45);
    assert_eq!(Interfaces::ALL.len(), 45);
    let services: BTreeSet<_> = Method::all().map(Method::service).collect();
    assert_eq!(services.len(), 12);
    let of_models = Model::all().iter().map(|model| model.interfaces().len());
    assert_eq!(of_models.sum::<usize>(), 45);
}

#[test]
fn every_method_is_found_by_path_and_id() {
    for method in Method::all() {
        assert_eq!(Method::by_path(method.path().as_bytes()), Some(method));
        assert_eq!(Method::by_id(method.id()), Some(method));
        assert_eq!(method.path(), format!("/{}/{}", method.service(), method.name()));
    }
    assert_eq!(
        Method::by_path(b"/prism.keyvalue.v1.KeyValueService/Get"),
        Some(Method::KEYVALUE_GET)
    );
}

#[test]
fn no_other_path_is_found() {
    for method in Method::all() {
        let path = method.path().as_bytes();
        for end in 0..path.len() {
            // `Scan` is the beginning of `ScanKeys`, and a method all the same.
            let found = Method::by_path(&path[..end]);
            assert!(found.is_none_or(|found| found.path().as_bytes() == &path[..end]));
            let mut changed = path.to_vec();
            changed[end] ^= 1;
            let found = Method::by_path(&changed);
            assert!(found.is_none_or(|found| found.path().as_bytes() == changed));
        }
        assert_eq!(Method::by_path(&[path, b"x"].concat()), None);
    }
    assert_eq!(Method::by_id(0), None);
    assert_eq!(Method::by_id(u16::MAX), None);
}

#[test]
fn interfaces_belong_to_their_models_and_are_never_empty() {
    for &interface in Interface::all() {
        assert_eq!(Interface::by_name(interface.name()), Some(interface));
        assert!(interface.name().starts_with(&format!("{}_", interface.model())));
        assert!(interface.model().interfaces().contains(interface));
        assert!(interface.methods().count() > 0, "{interface}");
    }
    for &model in Model::all() {
        assert_eq!(Model::by_name(model.name()), Some(model));
    }
}

#[test]
fn a_set_of_interfaces_is_a_set() {
    let set = Interfaces::of(&[Interface::KeyValueBasic, Interface::KeyValueTtl]);
    assert_eq!(set.len(), 2);
    assert!(set.contains(Interface::KeyValueTtl) && !set.contains(Interface::KeyValueCas));
    assert_eq!(set.without(Interface::KeyValueTtl).len(), 1);
    assert_eq!(set.iter().collect::<Interfaces>(), set);
    assert!(Interfaces::ALL.contains_all(set) && !set.contains_all(Interfaces::ALL));
    assert!(set.intersects(set) && !set.intersects(Interfaces::NONE));
    assert_eq!(Interfaces::ALL.difference(set).len(), 43);
    assert_eq!(format!("{set:?}"), r#"{"keyvalue_basic", "keyvalue_ttl"}"#);
}

#[test]
fn a_plan_offers_a_method_by_its_interface_or_by_any_that_it_needs() {
    let basic = Interfaces::of(&[Interface::KeyValueBasic]);
    assert!(Method::KEYVALUE_GET.offered_by(basic));
    assert!(!Method::KEYVALUE_SCAN.offered_by(basic));
    assert!(Method::READER_GET.offered_by(basic));
    assert!(!Method::TRANSACT_EXECUTE.offered_by(basic));
}
