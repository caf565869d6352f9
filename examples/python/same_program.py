"""The same program of calls over every namespace that a server has: what it hears may not depend on where the data lies.

For each model it runs one list of calls in each namespace of it, and compares what it heard with what it heard from the embedded
store. Calls of interfaces that a namespace does not offer are left out, and that is said. Ends with 1 where something differs.

python3 -m venv .venv && .venv/bin/pip install -r examples/python/requirements.txt
.venv/bin/python examples/python/same_program.py [HOST:PORT]      # `dev/same-program` starts servers, Prism and this
"""

import sys
import time

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICES = {
    "keyvalue": "prism.keyvalue.v1.KeyValueService",
    "queue": "prism.queue.v1.QueueService",
    "stream": "prism.stream.v1.StreamService",
    "pubsub": "prism.pubsub.v1.PubSubService",
}
READER = "prism.reader.v1.ReaderService"
TRANSACT = "prism.transact.v1.TransactService"
NAMESPACES = "prism.namespace.v1.NamespaceService"
PATIENCE = 60  # seconds for a call

# Names that nobody has used before.
RUN = f"run-{time.time_ns():x}"


class Namespace:
    """One namespace, and what was heard in it so far."""

    def __init__(self, channel, pool, name, model, interfaces=()):
        self.channel, self.pool, self.name, self.model, self.interfaces = channel, pool, name, model, set(interfaces)
        self.heard, self.left_out, self.calls, self.after = [], set(), 0, None

    def stub(self, method, service):
        described = self.pool.FindServiceByName(service).methods_by_name[method]
        kind = self.channel.unary_stream if described.server_streaming else self.channel.unary_unary
        stub = kind(
            f"/{service}/{method}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=GetMessageClass(described.output_type).FromString,
        )
        return stub, GetMessageClass(described.input_type)

    def call(self, method, service=None, **fields):
        """A unary call; what was written before is seen by it, wherever it is on its way."""
        stub, request = self.stub(method, service or SERVICES[self.model])
        metadata = [("prism-after", self.after)] if self.after else []
        self.calls += 1
        answer, done = stub.with_call(request(namespace=self.name, **fields), metadata=metadata, timeout=PATIENCE)
        self.after = dict(done.trailing_metadata()).get("prism-lsn", self.after)
        return answer

    def stream(self, method, service=None, **fields):
        """A call that is answered by a stream."""
        stub, request = self.stub(method, service or SERVICES[self.model])
        metadata = [("prism-after", self.after)] if self.after else []
        self.calls += 1
        return stub(request(namespace=self.name, **fields), metadata=metadata, timeout=PATIENCE)

    def offers(self, interface):
        if interface in self.interfaces:
            return True
        self.left_out.add(interface)
        return False

    def hear(self, what, heard):
        self.heard.append(f"{what}: {heard}")


def keyvalue(on):
    greeting, order = f"{RUN}.greeting", f"{RUN}.order"
    on.call("Set", key=greeting, value=b"hello")
    on.hear("Get", on.call("Get", key=greeting).entry.value)
    on.hear("Get of a key that is not there", on.call("Get", key=f"{RUN}.none").found)
    on.hear("Set if absent, and it is there", on.call("Set", key=greeting, value=b"x", only_if=1).applied)
    on.hear("Set, and what it replaced", on.call("Set", key=greeting, value=b"bye", return_previous=True).previous.value)
    on.hear("Exists", on.call("Exists", key=greeting).exists)
    if on.offers("keyvalue_cas"):
        on.hear("swap absent for new", on.call("CompareAndSwap", key=order, expected_absent={}, value=b"new").swapped)
        on.hear("swap old for paid", on.call("CompareAndSwap", key=order, expected_value=b"old", value=b"paid").swapped)
        on.hear("swap new for paid", on.call("CompareAndSwap", key=order, expected_value=b"new", value=b"paid").swapped)
    if on.offers("keyvalue_batch"):
        items = [{"key": f"{RUN}.item-{number}", "value": str(number).encode()} for number in range(20)]
        on.call("BatchSet", items=items)
        got = on.call("BatchGet", keys=[item["key"] for item in items] + [f"{RUN}.none"])
        on.hear("BatchGet", [result.entry.value for result in got.results])
    if on.offers("keyvalue_scan"):
        keys = [entry.key for page in on.stream("Scan", prefix=f"{RUN}.item-") for entry in page.entries]
        on.hear("Scan", sorted(set(key.removeprefix(RUN) for key in keys)))
        keys = [key for page in on.stream("ScanKeys", glob=f"{RUN}.item-?") for key in page.keys]
        on.hear("ScanKeys by a pattern", sorted(set(key.removeprefix(RUN) for key in keys)))
    if on.offers("keyvalue_ttl"):
        on.call("Expire", key=greeting, ttl={"seconds": 3600})
        on.hear("expires after Expire", on.call("GetTtl", key=greeting).HasField("ttl"))
        on.call("Persist", key=greeting)
        on.hear("expires after Persist", on.call("GetTtl", key=greeting).HasField("ttl"))
    if on.offers("keyvalue_transactional"):
        operations = [{"key": order, "put": {"value": b"sent"}}, {"key": greeting, "delete": {}}]
        conditions = [{"key": order, "value": b"nothing"}]
        on.hear("Execute", on.call("Execute", TRANSACT, conditions=conditions, operations=operations).committed)
        conditions = [{"key": order, "value": b"paid"}]
        on.hear("Execute", on.call("Execute", TRANSACT, conditions=conditions, operations=operations).committed)
        on.hear("Get of both", [on.call("Get", key=key).entry.value for key in (order, greeting)])
    on.call("Delete", key=order)
    on.hear("Exists after Delete", on.call("Exists", key=order).exists)


def queue(on):
    name = {"queue": f"mail-{RUN}"}
    if on.offers("queue_dead_letter"):
        on.call("ConfigureDeadLetter", max_deliveries=9, **name)
    on.call("Send", message={"payload": b"one"}, **name)
    on.call("SendBatch", messages=[{"payload": b"two"}, {"payload": b"three"}], **name)

    def receive(count, **more):
        got = []
        while len(got) < count:
            answer = on.call("Receive", max_messages=count - len(got), wait={"seconds": 20}, **more, **name)
            if not answer.deliveries:
                break
            got.extend(answer.deliveries)
        return got

    got = receive(3)
    on.hear("Receive", sorted(one.message.payload for one in got))
    on.hear("attempts", [one.attempt for one in got])
    by_payload = {one.message.payload: one for one in got}
    done = on.call("Acknowledge", receipts=[by_payload[b"one"].receipt], **name)
    on.hear("Acknowledge", [result.status.code for result in done.results])
    if on.offers("queue_visibility"):
        on.call("ExtendVisibility", receipt=by_payload[b"two"].receipt, visibility_timeout={"seconds": 60}, **name)
        on.call("Release", receipt=by_payload[b"two"].receipt, **name)
        again = receive(1)
        on.hear("after Release", [(one.message.payload, one.attempt) for one in again])
        by_payload[b"two"] = again[0]
    on.call("Acknowledge", receipts=[by_payload[b"two"].receipt], **name)
    on.call("Reject", receipts=[by_payload[b"three"].receipt], reason="cannot be read", **name)
    if on.offers("queue_dead_letter"):
        dead = on.call("ListDeadLetters", **name).dead_letters
        on.hear("dead letters", [(one.message.payload, one.reason, one.attempts) for one in dead])
        on.hear("Redrive", on.call("Redrive", **name).redriven)
        back = receive(1)
        on.hear("after Redrive", [one.message.payload for one in back])
        on.call("Acknowledge", receipts=[one.receipt for one in back], **name)
    if on.offers("queue_priority"):
        for number in (1, 9, 5):
            on.call("SendWithPriority", message={"payload": str(number).encode(), "priority": number}, **name)
        got = receive(3)
        on.hear("by priority", [one.message.payload for one in got])
        on.call("Acknowledge", receipts=[one.receipt for one in got], **name)
    if on.offers("queue_delayed"):
        on.call("SendDelayed", message={"payload": b"later", "delay": {"nanos": 300_000_000}}, **name)
        on.hear("after its delay", [one.message.payload for one in receive(1)])


def stream(on):
    name = {"stream": f"placed-{RUN}"}
    appended = [on.call("Append", record={"value": f"{number}".encode(), "key": "o-1"}, **name) for number in range(3)]
    records = [{"value": f"{number}".encode(), "key": "o-1", "attributes": {"kind": "late"}} for number in range(3, 6)]
    on.call("AppendBatch", records=records, **name)

    def heard(pages):
        return [(record.key, record.value, dict(record.attributes)) for page in pages for record in page.records]

    on.hear("Read", heard(on.stream("Read", start={"earliest": {}}, **name)))
    on.hear("Read two", heard(on.stream("Read", start={"earliest": {}}, limit=2, **name)))
    read = [record for page in on.stream("Read", start={"earliest": {}}, **name) for record in page.records]
    on.hear("Read behind the third", heard(on.stream("Read", start={"after": read[2].position}, **name)))
    on.hear("Reader", heard(on.stream("Read", READER, source={"stream": name["stream"]}, **{"start": {"earliest": {}}})))
    on.hear("answers with a position", len(appended))
    if on.offers("stream_replay"):
        before = read[4].position
        on.hear("ReplayRange", heard(on.stream("ReplayRange", start={"at": read[1].position}, before=before, **name)))
    if on.offers("stream_consumer_groups"):
        group = {"group": "billing", **name}
        on.call("CreateConsumerGroup", start={"earliest": {}}, **group)
        joined = on.stream("JoinConsumerGroup", **group)
        got = []
        for event in joined:
            if event.WhichOneof("event") == "record":
                got.append(event.record)
                done = on.call("Acknowledge", receipts=[event.record.receipt], **group)
                assert [result.status.code for result in done.results] == [0], done
            if len(got) == 6:
                break
        joined.cancel()
        on.hear("as a member of a group", [(one.record.value, one.attempt) for one in got])


def pubsub(on):
    name = {"topic": f"orders.{RUN}"}
    events = on.stream("Subscribe", **name)
    assert next(events).WhichOneof("event") == "started"
    for number in range(3):
        on.call("Publish", message={"payload": f"{number}".encode()}, **name)
    on.hear("Subscribe", [next(events).delivery.delivery.message.payload for _ in range(3)])
    events.cancel()
    if on.offers("pubsub_wildcards"):
        events = on.stream("SubscribePattern", pattern=f"*.{RUN}")
        assert next(events).WhichOneof("event") == "started"
        on.call("Publish", message={"payload": b"seen"}, **name)
        on.hear("SubscribePattern", next(events).delivery.delivery.message.payload)
        events.cancel()
    if on.offers("pubsub_filtering"):
        events = on.stream("SubscribeFiltered", filter='kind = "paid"', **name)
        assert next(events).WhichOneof("event") == "started"
        for kind in ("new", "paid"):
            message = {"payload": kind.encode(), "attributes": {"kind": kind}}
            on.call("PublishWithAttributes", message=message, **name)
        on.hear("SubscribeFiltered", next(events).delivery.delivery.message.payload)
        events.cancel()
    if on.offers("pubsub_persistent"):
        durable = {"topic": f"kept.{RUN}", "subscription_id": f"billing-{RUN}"}
        for number in range(3):
            on.call("PublishPersistent", message={"payload": f"{number}".encode()}, topic=durable["topic"])

        def take(count, acknowledged):
            events = on.stream("SubscribeDurable", start={"earliest": {}}, **durable)
            got = []
            for event in events:
                if event.WhichOneof("event") == "delivery":
                    got.append(event.delivery.delivery)
                if len(got) == count:
                    break
            on.call("Acknowledge", receipts=[one.receipt for one in got[:acknowledged]], **durable)
            events.cancel()
            return [one.message.payload for one in got]

        on.hear("SubscribeDurable", take(3, 2))
        on.hear("what was not acknowledged comes again", take(1, 1))
        on.call("Unsubscribe", subscription_id=durable["subscription_id"])


def namespaces(channel, pool):
    """Those of a model that has a program: by model, the embedded store's first."""
    lister = Namespace(channel, pool, "", "")
    stub, request = lister.stub("List", NAMESPACES)
    found = {model: [] for model in SERVICES}
    for one in stub(request(), timeout=PATIENCE).namespaces:
        if one.client_api in found:
            found[one.client_api].append(one)
    for model, of_model in found.items():
        of_model.sort(key=lambda one: (not is_embedded(one), one.backend, one.name))
    return found


def is_embedded(namespace):
    return namespace.backend in ("", "memory", "memstore", "embedded")


def main():
    channel = grpc.insecure_channel(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400")
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    differ = False
    for model, of_model in namespaces(channel, pool).items():
        reference = None
        for described in of_model:
            on = Namespace(channel, pool, described.name, model, described.interfaces)
            globals()[model](on)
            heard = dict(line.split(": ", 1) for line in on.heard)
            if reference is None:
                reference = heard
                print(f"\n{model}, and what is heard in `{on.name}` ({described.backend or 'embedded'}):")
                for what, answer in heard.items():
                    print(f"  {what}: {answer}")
                continue
            others = [what for what in heard if heard[what] != reference.get(what)]
            verdict = "the same" if not others else "DIFFERENT"
            left_out = f"; not offered: {', '.join(sorted(on.left_out))}" if on.left_out else ""
            print(f"{verdict:>10}  {on.name} on {described.backend}: {on.calls} calls, {len(heard)} answers compared{left_out}")
            for what in others:
                print(f"            {what}: {heard[what]}, not {reference.get(what)}")
            differ = differ or bool(others)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
