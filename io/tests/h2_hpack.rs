//! RFC 7541, appendix C, and what a decoder has to refuse.

mod h2_support;

use h2_support::unhex;
use prism_io::h2::hpack::{DecodeError, Decoder, Encoder, Indexing};

fn decode(decoder: &mut Decoder, hex: &str) -> Result<Vec<String>, DecodeError> {
    let mut fields = Vec::new();
    decoder.decode(&unhex(&hex.replace(' ', "")), |field| {
        let (name, value) = (field.name, field.value);
        fields.push(format!(
            "{}: {}",
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(value)
        ));
    })?;
    Ok(fields)
}

fn table(decoder: &Decoder) -> Vec<String> {
    (0..decoder.table().len())
        .filter_map(|index| decoder.table().get(index))
        .map(|f| {
            format!("{}: {}", String::from_utf8_lossy(f.name), String::from_utf8_lossy(f.value))
        })
        .collect()
}

/// C.2: single representations.
#[test]
fn single_representations() {
    for (hex, field, entries) in [
        (
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            "custom-key: custom-header",
            1,
        ),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", 0),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", 0),
        ("82", ":method: GET", 0),
    ] {
        let mut decoder = Decoder::new();
        assert_eq!(decode(&mut decoder, hex).unwrap(), [field]);
        assert_eq!(decoder.table().len(), entries);
    }
}

const REQUESTS: [&[&str]; 3] = [
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"],
    &[
        ":method: GET",
        ":scheme: http",
        ":path: /",
        ":authority: www.example.com",
        "cache-control: no-cache",
    ],
    &[
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ],
];

/// C.3 and C.4: requests, without and with Huffman coding.
#[test]
fn requests() {
    let plain = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    let coded = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    for blocks in [plain, coded] {
        let mut decoder = Decoder::new();
        for ((block, fields), size) in blocks.iter().zip(REQUESTS).zip([57, 110, 164]) {
            assert_eq!(decode(&mut decoder, block).unwrap(), fields);
            assert_eq!(decoder.table().size(), size);
        }
        assert_eq!(
            table(&decoder),
            ["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"]
        );
    }
}

/// C.4 the other way round: our encoder writes the very same bytes.
#[test]
fn the_encoder_writes_the_bytes_of_the_rfc() {
    let mut encoder = Encoder::new(4096);
    for (fields, expected) in REQUESTS.iter().zip([
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ]) {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        for field in *fields {
            let (name, value) = field.rsplit_once(": ").unwrap();
            encoder.field(&mut block, name.as_bytes(), value.as_bytes(), Indexing::Index);
        }
        assert_eq!(block, unhex(expected));
    }
}

/// C.5 and C.6: responses with a table of 256 bytes, so that entries are evicted.
#[test]
fn responses_with_eviction() {
    let plain = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
    ];
    let coded = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    let cookie = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    for blocks in [plain, coded] {
        let mut decoder = Decoder::new();
        // The context of C.5: a table of 256 bytes.
        decoder.decode(&[0x3f, 0xe1, 0x01], |_| {}).unwrap();
        let first = decode(&mut decoder, blocks[0]).unwrap();
        assert_eq!(
            first,
            [
                ":status: 302",
                "cache-control: private",
                "date: Mon, 21 Oct 2013 20:13:21 GMT",
                "location: https://www.example.com",
            ]
        );
        assert_eq!(decoder.table().size(), 222);
        let second = decode(&mut decoder, blocks[1]).unwrap();
        assert_eq!((&second[0][..], &second[1..]), (":status: 307", &first[1..]));
        assert_eq!(decoder.table().size(), 222);
        let third = decode(&mut decoder, blocks[2]).unwrap();
        assert_eq!(third[4..], ["content-encoding: gzip", &format!("set-cookie: {cookie}")]);
        assert_eq!(decoder.table().size(), 215);
        assert_eq!(
            table(&decoder),
            [
                &format!("set-cookie: {cookie}"),
                "content-encoding: gzip",
                "date: Mon, 21 Oct 2013 20:13:22 GMT",
            ]
        );
    }
}

/// Section, block, error.
#[test]
fn refuses() {
    for (section, hex, error) in [
        ("2.3.3 index 0", "80", DecodeError::InvalidIndex),
        ("2.3.3 beyond both tables", "be", DecodeError::InvalidIndex),
        ("2.3.3 a name beyond both tables", "7e01 61", DecodeError::InvalidIndex),
        ("4.2 an update above the maximum", "3fe2 1f", DecodeError::InvalidSizeUpdate),
        ("4.2 an update after a field", "8220", DecodeError::InvalidSizeUpdate),
        ("5.1 an integer without end", "ffff ffff ffff ffff", DecodeError::IntegerOverflow),
        ("5.1 a cut integer", "ff", DecodeError::Truncated),
        ("5.2 a cut string", "0002 61", DecodeError::Truncated),
        ("5.2 no value", "0001 61", DecodeError::Truncated),
        ("5.2 EOS in a string", "0001 6184 ffff ffff", DecodeError::InvalidHuffman),
        ("5.2 padding with zeros", "0001 6181 18", DecodeError::InvalidHuffman),
        ("5.2 padding of eight bits", "0001 6182 1fff", DecodeError::InvalidHuffman),
    ] {
        assert_eq!(decode(&mut Decoder::new(), hex), Err(error), "{section}");
    }
}

/// Section 4.2: a lowered maximum has to be confirmed at the start of the next block.
#[test]
fn a_lowered_maximum_is_to_be_confirmed() {
    let mut decoder = Decoder::new();
    decoder.set_table_bytes_max(100);
    assert_eq!(decode(&mut decoder, "82"), Err(DecodeError::InvalidSizeUpdate));
    let mut decoder = Decoder::new();
    decoder.set_table_bytes_max(100);
    assert_eq!(decode(&mut decoder, "3f45 82").unwrap(), [":method: GET"]);
    assert_eq!(decoder.table().capacity(), 100);
}

/// Section 4.3: the encoder announces the lowest size and the last one, and both tables stay in step.
#[test]
fn the_encoder_announces_changed_sizes() {
    let mut encoder = Encoder::new(4096);
    let mut decoder = Decoder::new();
    let mut round = |encoder: &mut Encoder, sizes: &[usize]| {
        for &size in sizes {
            encoder.set_table_bytes_max(size);
        }
        let mut block = Vec::new();
        encoder.begin(&mut block);
        encoder.field(&mut block, b"custom-key", b"custom-value", Indexing::Index);
        let mut fields = 0;
        decoder
            .decode(&block, |field| fields += usize::from(field.value == b"custom-value"))
            .unwrap();
        assert_eq!(fields, 1);
        (block.len(), decoder.table().len())
    };
    let (first, _) = round(&mut encoder, &[]);
    assert_eq!(round(&mut encoder, &[]), (1, 1));
    assert_eq!(round(&mut encoder, &[0, 4096]), (first + 4, 1));
    assert_eq!(round(&mut encoder, &[]), (1, 1));
    assert_eq!(round(&mut encoder, &[0]).1, 0);
}

/// C.2.3 and section 6.2.3: a never-indexed literal is shown as one, and written as one.
#[test]
fn never_indexed_literals() {
    let mut marks = Vec::new();
    let mut decoder = Decoder::new();
    // Never indexed, not indexed, indexed, then the index.
    let block = "1008 7061 7373 776f 7264 0673 6563 7265 74 040c 2f73 616d 706c 652f 7061 7468 4001 6101 62 be";
    decoder.decode(&unhex(&block.replace(' ', "")), |field| marks.push(field.sensitive)).unwrap();
    assert_eq!(marks, [true, false, false, false]);
    assert_eq!(decoder.table().len(), 1);

    let mut encoder = Encoder::new(4096);
    for _ in 0..2 {
        let mut block = Vec::new();
        encoder.field(&mut block, b"password", b"secret", Indexing::Never);
        assert_eq!(block, unhex("100870617373776f726406736563726574"));
        // Not even where the tables have the very field: `:method: GET`.
        let mut block = Vec::new();
        encoder.field(&mut block, b":method", b"GET", Indexing::Never);
        assert_eq!(block[0], 0x12);
    }
}

/// Section 4.2 and 6.3: updates stand at the start of a block, several of them too, and within what was agreed on.
#[test]
fn size_updates() {
    let mut decoder = Decoder::new();
    decode(&mut decoder, "4001 6101 62 4001 6301 64").unwrap();
    assert_eq!(decoder.table().len(), 2);
    // To 40: the older one goes. To 0 and back: both.
    decode(&mut decoder, "3f09 82").unwrap();
    assert_eq!(table(&decoder), ["c: d"]);
    decode(&mut decoder, "20 3fe1 1f 82").unwrap();
    assert_eq!((decoder.table().len(), decoder.table().capacity()), (0, 4096));
    assert_eq!(decode(&mut decoder, "be"), Err(DecodeError::InvalidIndex));
    for (hex, what) in
        [("82 20", "after a field"), ("3fe2 1f", "too large"), ("20 3fe2 1f", "the second")]
    {
        let refused = decode(&mut Decoder::new(), hex);
        assert_eq!(refused, Err(DecodeError::InvalidSizeUpdate), "{what}");
    }
    // An update alone is a block, and what it set holds afterwards.
    let mut decoder = Decoder::new();
    decode(&mut decoder, "20").unwrap();
    decode(&mut decoder, "4001 6101 62").unwrap();
    assert!(decoder.table().is_empty());
}

/// Section 4.4: an insertion may evict the entry whose name it takes, and one that is too large empties the table.
#[test]
fn insertions_evict() {
    let mut decoder = Decoder::new();
    // A table of 40 bytes: `abc: d` takes 36 of them.
    decode(&mut decoder, "3f09 4003 6162 6301 64").unwrap();
    assert_eq!(decode(&mut decoder, "7e02 6566").unwrap(), ["abc: ef"]);
    assert_eq!(table(&decoder), ["abc: ef"]);
    let large = format!("7e28 {}", "67".repeat(40));
    assert_eq!(decode(&mut decoder, &large).unwrap().len(), 1);
    assert!(decoder.table().is_empty());
}

/// A field of which nobody knows whether it repeats costs its bytes twice and one byte from then on; what does not repeat never
/// enters the table, and whatever is evicted or forgotten comes again as a literal.
#[test]
fn what_repeats_is_indexed() {
    let mut encoder = Encoder::new(4096);
    let mut decoder = Decoder::new();
    let mut round = |encoder: &mut Encoder, fields: &[(String, String)]| {
        let mut block = Vec::new();
        encoder.begin(&mut block);
        for (name, value) in fields {
            encoder.repeating(&mut block, name.as_bytes(), value.as_bytes());
        }
        let mut seen = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        decoder.decode(&block, |field| seen.push((text(field.name), text(field.value)))).unwrap();
        assert_eq!(seen, fields, "both ends agree");
        (block.len(), decoder.table().len())
    };
    let field = |name: &str, value: &str| (name.to_string(), value.to_string());
    let same = [field("prism-durability", "wal")];
    let lengths: Vec<_> = (0..4).map(|_| round(&mut encoder, &same).0).collect();
    assert!(lengths[0] > 15 && lengths[1] > 10, "{lengths:?}");
    assert_eq!(lengths[2..], [1, 1]);
    for number in 0..1000 {
        let unique = [field("prism-lsn", &number.to_string()), same[0].clone()];
        assert!(round(&mut encoder, &unique).1 <= 2, "what never repeats stays out");
    }
    // Thousands that do, in a table that holds far fewer, with sizes that change meanwhile.
    let mut state = 7u64;
    for step in 0..20_000u32 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let number = (state >> 33) % 300;
        if step % 1000 == 0 {
            encoder.set_table_bytes_max([4096, 200, 0, 1000][(step / 1000 % 4) as usize]);
        }
        round(
            &mut encoder,
            &[field(&format!("name-{}", number % 7), &"v".repeat(number as usize))],
        );
    }
}
