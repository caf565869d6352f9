//! A contradictory API does not build, and the build says what is wrong.

#[path = "../build/catalogue.rs"]
mod catalogue;

use std::fs;
use std::path::Path;

use prost_reflect::DescriptorPool;

/// What the build says when `from` stands as `to` in the file.
fn refusal(file: &str, from: &str, to: &str) -> String {
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let changed = tempfile::tempdir().expect("a temporary folder");
    let text = fs::read_to_string(original.join(file)).expect("the file is there");
    assert!(text.contains(from), "{file} does not contain {from}");
    let path = changed.path().join(file);
    fs::create_dir_all(path.parent().expect("a folder")).expect("created");
    fs::write(&path, text.replacen(from, to, 1)).expect("written");

    let mut files = Vec::new();
    collect(&original, &original, &mut files);
    let mut compiler = protox::Compiler::new([changed.path(), &original]).expect("folders");
    compiler.include_imports(true).open_files(files).expect("valid protobuf");
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice());
    match catalogue::generate(&pool.expect("descriptors")) {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("below the root");
            files.push(name.to_str().expect("UTF-8").to_owned());
        }
    }
}

const KEYVALUE: &str = "prism/keyvalue/v1/keyvalue.proto";

#[test]
fn the_api_as_it_is_is_accepted() {
    assert_eq!(refusal(KEYVALUE, "// Values under keys.", "// Values."), "accepted");
}

#[test]
fn a_method_without_an_interface_is_refused() {
    assert_eq!(
        refusal(KEYVALUE, "option (prism.interface) = \"keyvalue_basic\";", ""),
        "prism.keyvalue.v1.KeyValueService.Get: \
         has neither (prism.interface) nor (prism.needs_any)"
    );
}

#[test]
fn an_interface_of_another_model_is_refused() {
    assert_eq!(
        refusal(KEYVALUE, "\"keyvalue_basic\"", "\"keyvalues_basic\""),
        "prism.keyvalue.v1.KeyValueService.Get: \
         unknown interface \"keyvalues_basic\" in the service of \"keyvalue\""
    );
}

#[test]
fn a_misspelt_interface_makes_one_too_many() {
    let refusal = refusal(KEYVALUE, "\"keyvalue_basic\"", "\"keyvalue_basics\"");
    assert!(refusal.starts_with("the API has 12 services, 10 models and 45 interfaces"));
    assert!(refusal.contains("keyvalue_basics"), "{refusal}");
}

#[test]
fn an_unknown_interface_in_a_need_is_refused() {
    let refusal =
        refusal(KEYVALUE, "(prism.needs) = \"keyvalue_ttl\"", "(prism.needs) = \"keyvalue_tll\"");
    assert!(refusal.ends_with("unknown interface \"keyvalue_tll\""), "{refusal}");
}

#[test]
fn an_id_used_twice_is_refused() {
    let refusal = refusal(KEYVALUE, "id: 102", "id: 101");
    assert!(refusal.ends_with("have the same id 101"), "{refusal}");
}

#[test]
fn a_key_field_that_is_not_there_is_refused() {
    assert_eq!(
        refusal(KEYVALUE, "key_field: \"key\"", "key_field: \"kee\""),
        "prism.keyvalue.v1.KeyValueService.Get: key field \"kee\" does not exist"
    );
}

#[test]
fn a_write_must_say_where_its_answer_comes_from() {
    assert_eq!(
        refusal(KEYVALUE, ", reply_from: REPLY_FROM_LOG", ""),
        "prism.keyvalue.v1.KeyValueService.Set: a write must say reply_from"
    );
}

#[test]
fn a_request_without_a_namespace_is_refused() {
    assert_eq!(
        refusal(KEYVALUE, "string namespace = 1;", "string space = 1;"),
        "prism.keyvalue.v1.KeyValueService.Get: \
         the request's field 1 is not `string namespace`"
    );
}
